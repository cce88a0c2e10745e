/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// The page's half of `bench apdu`. Times are in milliseconds, by the page's own clock.

"use strict";

self.bench = {
    // The channels that are open, for each slot.
    channels: [[], []],

    // Opens channels to the echo applet of the card in a slot.
    async open(slot, count) {
        const reader = (await navigator.secureElementManager.getReaders())[slot];
        if (!reader?.isSEPresent)
            throw new Error(`slot ${slot} has no card`);
        const session = await reader.openSession();
        const aid = hex("F0534552564F0101");
        while (bench.channels[slot].length < count)
            bench.channels[slot].push(await session.openSupplementaryChannel(aid));
    },

    // Keeps one command in flight on each channel for as long as there are `more()`. Gives the moments of the start and
    // of each answer.
    async exchange(channels, { ins, parameters, length }, more) {
        const data = Uint8Array.from({ length }, (_, index) => index % 251);
        const command = length
            ? new SECommand(0, ins, ...parameters, data, 0, length > 255)
            : new SECommand(0, ins, ...parameters, null, parameters.length);
        const expected = length ? data : parameters;
        const moments = [performance.now()];
        await Promise.all(channels.map(async channel => {
            while (more()) {
                const { sw1, sw2, data } = await channel.transmit(command);
                moments.push(performance.now());
                if (sw1 !== 0x90 || sw2 !== 0x00 || !bench.equal(data, expected))
                    throw new Error("a wrong answer");
            }
        }));
        return moments;
    },

    equal(left, right) {
        let index = left.length === right.length ? left.length : 0;
        while (index > 0 && left[index - 1] === right[index - 1])
            index--;
        return index === 0 && left.length === right.length;
    },

    // So many commands on the first channels of each slot.
    exchanges(slots, channels, exchange, count) {
        return Promise.all(slots.map(slot => {
            let left = count;
            return bench.exchange(bench.channels[slot].slice(0, channels), exchange, () => left-- > 0);
        }));
    },

    // The longest time between two turns of a timer that fires each millisecond, while there is a command in flight on
    // so many channels. (Messages to oneself would come more often, and make garbage whose collection outlasts the rest.)
    async longestStall(channels, exchange, duration) {
        const end = performance.now() + duration;
        const more = () => performance.now() < end;
        const exchanges = bench.exchange(bench.channels[0].slice(0, channels), exchange, more);
        let longest = 0;
        await new Promise(resolve => {
            let last = performance.now();
            const timer = setInterval(() => {
                const now = performance.now();
                longest = Math.max(longest, now - last);
                last = now;
                if (now >= end) {
                    clearInterval(timer);
                    resolve();
                }
            }, 1);
        });
        await exchanges;
        return longest;
    },

    // How much longer the first getReaders() and the first openSession() take than the second ones.
    async start() {
        const timed = async action => {
            const started = performance.now();
            const result = await action();
            return [performance.now() - started, result];
        };
        const getReaders = () => navigator.secureElementManager.getReaders();
        const [first] = await timed(getReaders);
        const [second, readers] = await timed(getReaders);
        const reader = readers.find(reader => reader.isSEPresent);
        const openSession = () => reader.openSession();
        const [firstSession] = await timed(openSession);
        const [secondSession] = await timed(openSession);
        return [first - second, firstSession - secondSession];
    },
};
