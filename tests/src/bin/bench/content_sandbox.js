/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// Small programs that use what scripts use: numbers, memory, strings, objects, garbage, wasm, workers, documents. Each gives
// the same result every time.

// Counts down from its argument and hashes on the way.
const MODULE = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 114, 117, 110, 0, 0, 10, 30, 1,
    28, 1, 1, 127, 3, 64, 32, 1, 65, 31, 108, 32, 0, 115, 33, 1, 32, 0, 65, 1, 107, 34, 0, 13, 0, 11, 32, 1, 11,
]);

// Numbers that look random, and are the same every time.
const noise = seed => () => {
    seed = Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) + 0x9e3779b9 | 0;
    return (seed >>> 8) / 0x1000000;
};

class Tree {
    constructor(depth) {
        this.left = depth ? new Tree(depth - 1) : null;
        this.right = depth ? new Tree(depth - 1) : null;
    }

    count() {
        return 1 + (this.left?.count() ?? 0) + (this.right?.count() ?? 0);
    }
}

class Circle { constructor(size) { this.size = size; } area() { return 3 * this.size * this.size; } }
class Square { constructor(size) { this.size = size; } area() { return this.size * this.size; } }
class Line { constructor(size) { this.size = size; } area() { return 0; } }

const worker = new Worker("/worker.js");
let module;

self.KERNELS = {
    "orbits": () => {
        const random = noise(1);
        const bodies = Array.from({ length: 24 }, () => [random(), random(), random(), 0, 0, 0]);
        for (let step = 0; step < 200; ++step) {
            for (const one of bodies) {
                for (const other of bodies) {
                    const [x, y, z] = [other[0] - one[0], other[1] - one[1], other[2] - one[2]];
                    const pull = 1e-5 / Math.pow(x * x + y * y + z * z + 0.01, 1.5);
                    one[3] += x * pull;
                    one[4] += y * pull;
                    one[5] += z * pull;
                }
            }
            for (const body of bodies) {
                for (let axis = 0; axis < 3; ++axis)
                    body[axis] += body[axis + 3];
            }
        }
        return bodies[0][0];
    },
    "matrices": () => {
        const size = 160, random = noise(2);
        const [one, other, product] = [0, 0, 0].map(() => new Float64Array(size * size).map(random));
        for (let row = 0; row < size; ++row) {
            for (let column = 0; column < size; ++column) {
                let sum = 0;
                for (let index = 0; index < size; ++index)
                    sum += one[row * size + index] * other[index * size + column];
                product[row * size + column] = sum;
            }
        }
        return product[size + 1];
    },
    "fractal": () => {
        let inside = 0;
        for (let row = 0; row < 150; ++row) {
            for (let column = 0; column < 200; ++column) {
                let [x, y, turn] = [0, 0, 0];
                while (turn < 100 && x * x + y * y < 4) {
                    [x, y] = [x * x - y * y + column / 70 - 2, 2 * x * y + row / 70 - 1];
                    ++turn;
                }
                inside += turn == 100;
            }
        }
        return inside;
    },
    "primes": () => {
        const composite = new Uint8Array(1_000_000);
        let count = 0;
        for (let number = 2; number < composite.length; ++number) {
            if (composite[number])
                continue;
            ++count;
            for (let multiple = number * 2; multiple < composite.length; multiple += number)
                composite[multiple] = 1;
        }
        return count;
    },
    "trees": () => {
        let count = 0;
        for (let round = 0; round < 8; ++round)
            count += new Tree(13).count();
        return count;
    },
    "large buffers": () => {
        let sum = 0;
        for (let round = 0; round < 12; ++round) {
            const buffer = new Uint8Array(4 * 1024 * 1024);
            for (let index = 0; index < buffer.length; index += 4096)
                buffer[index] = round;
            sum += buffer.slice(0, 1024 * 1024)[4096];
        }
        return sum;
    },
    "shapes": () => {
        const kinds = [Circle, Square, Line];
        const shapes = Array.from({ length: 30_000 }, (_, index) => new kinds[index % 3](index % 10));
        let area = 0;
        for (let round = 0; round < 20; ++round) {
            for (const shape of shapes)
                area += shape.area();
        }
        return area;
    },
    "maps": () => {
        const counts = new Map(), random = noise(3);
        for (let index = 0; index < 150_000; ++index) {
            const key = "key" + Math.floor(random() * 5000);
            counts.set(key, (counts.get(key) ?? 0) + 1);
        }
        return [...counts].sort(([one], [other]) => one < other ? -1 : 1)[10][1];
    },
    "sorting": () => {
        const random = noise(4);
        const numbers = Array.from({ length: 60_000 }, random);
        return numbers.sort((one, other) => one - other)[30_000];
    },
    "text": () => {
        const words = Array.from({ length: 20_000 }, (_, index) => "word" + index * 7919 % 1000).join(" ");
        const changed = words.replaceAll(/w(or)d(\d)/g, "$2$1").split(" ").map(word => word.toUpperCase());
        return changed.filter(word => word.includes("9")).join("-").length;
    },
    "JSON": () => {
        const data = Array.from({ length: 4000 }, (_, index) => ({ index, name: "name " + index, tags: ["a", "b"], part: { index } }));
        let length = 0;
        for (let round = 0; round < 3; ++round)
            length += JSON.stringify(JSON.parse(JSON.stringify(data))).length;
        return length;
    },
    "interpreter": () => {
        const code = [[0, 1], [1, 3], [2, 7], [3, 0x7fffff]];
        let [value, at] = [1, 0];
        for (let step = 0; step < 2_000_000; ++step) {
            const [operation, argument] = code[at];
            switch (operation) {
                case 0: value += argument; break;
                case 1: value = Math.imul(value, argument); break;
                case 2: value ^= argument; break;
                default: value &= argument;
            }
            at = (at + 1) % code.length;
        }
        return value;
    },
    "new code": () => {
        let sum = 0;
        for (let round = 0; round < 150; ++round) {
            const made = new Function("value", `let sum = ${round}; for (let i = 0; i < 2000; ++i) sum += value ^ i; return sum;`);
            sum += made(round);
        }
        return sum;
    },
    "promises": async () => {
        let sum = 0;
        for (let index = 0; index < 30_000; ++index)
            sum += await index;
        return sum;
    },
    "wasm": async () => {
        module ??= await WebAssembly.instantiate(MODULE);
        return module.instance.exports.run(20_000_000);
    },
    "messages to a worker": async () => {
        let sum = 0;
        for (let index = 0; index < 300; ++index) {
            const answer = new Promise(resolve => worker.onmessage = ({ data }) => resolve(data));
            worker.postMessage([index, 1]);
            sum += await answer;
        }
        return sum;
    },
    "document": () => {
        const box = document.createElement("div");
        box.innerHTML = "<section><p>one <b>two</b> three</p><ul><li>four<li>five</ul></section>".repeat(200);
        document.body.append(box);
        let height = box.getBoundingClientRect().height;
        for (const [index, section] of [...box.children].entries())
            section.style.width = `${100 + index}px`;
        height += box.getBoundingClientRect().height;
        box.remove();
        return height;
    },
    "canvas": () => {
        const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d");
        for (let index = 0; index < 300; ++index) {
            context.fillStyle = `rgb(${index % 256}, 0, 0)`;
            context.fillRect(index % 250, index % 100, 30, 30);
        }
        return context.getImageData(50, 50, 1, 1).data.toString();
    },
    "requests": async () => {
        let length = 0;
        for (let index = 0; index < 10; ++index)
            length += (await (await fetch("/worker.js?" + index)).text()).length;
        return length;
    },
    "digests": async () => {
        const bytes = new Uint8Array(1024 * 1024);
        let sum = 0;
        for (let round = 0; round < 6; ++round)
            sum += new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))[round];
        return sum;
    },
};

// The milliseconds that each program takes, `rounds` times, after some rounds to warm up; and what it gives.
self.measure = async (warmUp, rounds) => {
    const times = {}, results = {};
    for (let round = 0; round < warmUp + rounds; ++round) {
        for (const [name, kernel] of Object.entries(KERNELS)) {
            const started = performance.now();
            results[name] = await kernel();
            const took = performance.now() - started;
            if (round >= warmUp)
                (times[name] ??= []).push(took);
        }
    }
    return { times, results };
};
