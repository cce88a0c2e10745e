/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

const APPLET = hex("F0534552564F0631");
const LONG_RESPONSE = hex("F0534552564F0632");
const UNSELECTABLE = hex("F0534552564F06FF");
const ECHO = hex("F0534552564F0101");

const CLASSES = [0x00, 0x80, 0xA0, 0x94];
const WARNINGS = ["6200", "6281", "6282", "6283", "6285", "62f1", "62f2", "63f1", "63f2", "63c2",
    "6202", "6280", "6284", "6286", "6300", "6381"];

// The bytes 00 01 .. FF 00 .., of which the last is FF.
const pattern = length => {
    const bytes = new Uint8Array(length).map((_, index) => index);
    bytes[length - 1] = 0xFF;
    return text(bytes);
};
const octet = number => number.toString(16).padStart(2, "0");

self.conformance = async (method, t0) => {
    const session = await (await reader()).openSession();
    let rows = 0;
    const wrong = [];
    const check = (name, got, want) => {
        rows++;
        if (got !== want)
            wrong.push(`${name}: ${String(got).slice(0, 80)} instead of ${want.slice(0, 80)}`);
    };
    const attempt = promise => promise.catch(error => error.name);
    const channel = await session[method](APPLET);

    // A command as an SECommand and as bytes.
    const both = async (cla, ins, p1, p2, data, le, want) => {
        const name = `${octet(cla)} ${octet(ins)} ${octet(p1)} ${octet(p2)}`;
        const command = new SECommand(cla, ins, p1, p2, data, le);
        check(name, await attempt(channel.transmit(command).then(answer)), want);
        const bytes = [cla, ins, p1, p2];
        if (data)
            bytes.push(data.length, ...data);
        if (le !== null)
            bytes.push(le);
        const raw = channel.transmitRaw(Uint8Array.from(bytes)).then(text);
        check(`${name}, raw`, await attempt(raw), want);
    };

    // MANAGE CHANNEL open and close, and SELECT by DF name.
    for (const apdu of ["00700000", "00708000", "00A4040410A000000476416E64726F696443545331"]) {
        check(apdu, await attempt(channel.transmitRaw(hex(apdu))), "SEInvalidValueException");
        const [cla, ins, p1, p2] = hex(apdu);
        const data = apdu.length > 8 ? hex(apdu).slice(5) : null;
        const command = new SECommand(cla, ins, p1, p2, data);
        check(`${apdu} as an SECommand`, await attempt(channel.transmit(command)),
            "SEInvalidValueException");
    }

    const data = Uint8Array.of(0xAA);
    for (const cla of CLASSES) {
        await both(cla, 0x06, 0, 0, null, null, "9000");
        await both(cla, 0x0A, 0, 0, data, null, "9000");
        await both(cla, 0x08, 0, 0, null, 0, pattern(256) + "9000");
        await both(cla, 0x0C, 0, 0, data, 0, pattern(256) + "9000");
    }

    for (const [index, warning] of WARNINGS.entries()) {
        const p1 = index + 1;
        const details = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
        const echoed = `01f3${octet(p1)}0c08010203040506070800`;
        await both(0x00, 0xF3, p1, 0x06, null, null, warning);
        await both(0x00, 0xF3, p1, 0x08, null, 0, "0001ff" + warning);
        await both(0x00, 0xF3, p1, 0x0A, details, null, warning);
        await both(0x00, 0xF3, p1, 0x0C, details, 0, echoed + warning);
    }

    // T=0 has no extended lengths: there, whoever implements it puts the parts together.
    for (const [cla, ins, length, data] of [
        [0x00, 0xC2, 0x0800, null], [0x00, 0xC4, 0x0800, hex("1234")],
        [0x00, 0xC6, 0x0800, null], [0x00, 0xC8, 0x0800, hex("1234")],
        [0x00, 0xC2, 0x7FFF, null], [0x00, 0xCF, 0x0800, null], [0x94, 0xC2, 0x0800, null],
    ]) {
        const command = new SECommand(cla, ins, length >> 8, length & 0xFF, data, 0, !t0);
        check(`${octet(cla)} ${octet(ins)}, ${length} bytes`,
            await attempt(channel.transmit(command).then(answer)), pattern(length) + "9000");
    }

    for (const p2 of [0x00, 0x01, 0x7F, 0x80, 0xFF])
        check(`echo of P2 ${octet(p2)}`,
            await attempt(channel.transmit(new SECommand(0, 0xF4, 0, p2, null, 0)).then(answer)),
            `${octet(p2)}9000`);
    await channel.close();

    for (const p2 of [0x00, 0x04, 0x08, 0x0C]) {
        const channel = await session[method](APPLET, p2);
        const command = new SECommand(0, 0xF4, 1, 0, null, 0);
        check(`P2 ${octet(p2)} of SELECT`, answer(await channel.transmit(command)), `${octet(p2)}9000`);
        await channel.close();
    }

    check("not selectable", await attempt(session[method](UNSELECTABLE)), "SENoApplicationException");
    const long = await session[method](LONG_RESPONSE);
    const { data: information } = long.openResponse;
    if (information.length <= 200 || information[0] !== 0x6F)
        wrong.push(`the long answer to SELECT: ${text(information)}`);
    await session.close();
    return { rows, wrong };
};

// The channels that are open in the card, apart from the one that this needs.
self.conformanceChannels = async () => {
    const session = await (await reader()).openSession();
    const channel = await session.openSupplementaryChannel(ECHO);
    const channels = answer(await channel.transmit(new SECommand(0, 0x30, 0, 0, null, 0)));
    await session.close();
    return channels;
};
