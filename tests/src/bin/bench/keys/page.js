/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// The page's half of `bench keys`. Times are in milliseconds, by the page's own clock.

"use strict";

self.bench = {
    pairs: {},

    algorithms: {
        "P-256": { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" },
        "RSA-2048": { name: "RSASSA-PKCS1-v1_5", modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: "SHA-256" },
        "RSA-4096": { name: "RSASSA-PKCS1-v1_5", modulusLength: 4096, publicExponent: Uint8Array.of(1, 0, 1), hash: "SHA-256" },
    },

    message: new Uint8Array(32),

    // Has a key made in the token, under its algorithm's name.
    async make(name) {
        bench.pairs[name] = await token.generateKey(bench.algorithms[name], ["sign", "verify"], { name });
    },

    // Keeps so many signatures under way for as long as there are `more()`. Gives the moments of the start and of each
    // signature, and the last one.
    async signWhile(name, inFlight, more) {
        const algorithm = bench.algorithms[name];
        const { privateKey } = bench.pairs[name];
        const moments = [performance.now()];
        let signature;
        await Promise.all(Array.from({ length: inFlight }, async () => {
            while (more()) {
                signature = await crypto.subtle.sign(algorithm, privateKey, bench.message);
                moments.push(performance.now());
            }
        }));
        return { moments, signature };
    },

    // The moments of so many signatures.
    async sign(name, inFlight, count) {
        let left = count;
        const { moments, signature } = await bench.signWhile(name, inFlight, () => left-- > 0);
        const { publicKey } = bench.pairs[name];
        if (!await crypto.subtle.verify(bench.algorithms[name], publicKey, signature, bench.message))
            throw new Error("a wrong signature");
        return moments;
    },

    // The longest time between two turns of a timer that fires each millisecond, until something has happened.
    async longestStall(promise) {
        let longest = 0;
        let last = performance.now();
        const timer = setInterval(() => {
            const now = performance.now();
            longest = Math.max(longest, now - last);
            last = now;
        }, 1);
        try {
            await promise;
        } finally {
            clearInterval(timer);
        }
        return Math.max(longest, performance.now() - last);
    },

    idle(duration) {
        return bench.longestStall(new Promise(resolve => setTimeout(resolve, duration)));
    },

    signing(name, inFlight, duration) {
        const end = performance.now() + duration;
        return bench.longestStall(bench.signWhile(name, inFlight, () => performance.now() < end));
    },

    async generating(name) {
        const longest = await bench.longestStall(bench.make(name));
        await token.deleteKey(bench.pairs[name].privateKey);
        return longest;
    },
};
