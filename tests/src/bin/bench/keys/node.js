/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// Signs with keys of a PKCS#11 module through node-webcrypto-p11. Its arguments are the module and the PIN; each line that
// it reads names a key and says how many signatures it is to make, one after the other; each line that it writes is the
// moments of the start and of each signature in µs, or what went wrong.

"use strict";

const { Crypto } = require("node-webcrypto-p11");
const { createInterface } = require("node:readline");

const [library, pin] = process.argv.slice(-2);
const algorithms = {
    "P-256": { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" },
    "RSA-2048": { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" },
};
const message = new Uint8Array(32);

async function find(crypto, type, name, usage) {
    for (const index of await crypto.keyStorage.keys()) {
        if (!index.startsWith(type))
            continue;
        const key = await crypto.keyStorage.getItem(index, algorithms[name], true, [usage]);
        if (key.algorithm.label === name)
            return key;
    }
    throw new Error(`there is no ${type} ${name}`);
}

async function sign(crypto, keys, name, count) {
    const algorithm = algorithms[name];
    keys[name] ??= [await find(crypto, "private", name, "sign"), await find(crypto, "public", name, "verify")];
    const [privateKey, publicKey] = keys[name];
    const moments = [performance.now()];
    let signature;
    for (let index = 0; index < count; index++) {
        signature = await crypto.subtle.sign(algorithm, privateKey, message);
        moments.push(performance.now());
    }
    if (!await crypto.subtle.verify(algorithm, publicKey, signature, message))
        throw new Error("a wrong signature");
    return moments.map(moment => moment * 1e3);
}

async function main() {
    const crypto = new Crypto({ library, slot: 0, readWrite: false, pin });
    const keys = {};
    console.log("[]");
    for await (const line of createInterface({ input: process.stdin })) {
        const [name, count] = line.split(" ");
        console.log(JSON.stringify(await sign(crypto, keys, name, Number(count))));
    }
    crypto.close();
}

main().catch(error => {
    console.log(JSON.stringify(String(error)));
    process.exitCode = 1;
});
