/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// What ordinary pages do. Each check gives a value that is the same in every run; the sandbox may not change it.

const digest = async data =>
    Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", data)), byte =>
        byte.toString(16).padStart(2, "0")).join("");

const message = target => new Promise((resolve, reject) => {
    target.addEventListener("message", event => resolve(event.data), { once: true });
    target.addEventListener("error", event => reject(new Error(event.message)), { once: true });
});

const until = async condition => {
    for (;;) {
        const value = condition();
        if (value)
            return value;
        await new Promise(resolve => setTimeout(resolve, 20));
    }
};

const width = (family, text) => {
    const span = document.createElement("span");
    span.style.font = `40px ${family}`;
    span.textContent = text;
    document.body.append(span);
    const { width, height } = span.getBoundingClientRect();
    span.remove();
    return [width, height];
};

// Two numbers that a module adds.
const MODULE = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1,
    7, 0, 32, 0, 32, 1, 106, 11,
]);

const CHECKS = {
    // Fonts of the system, in the sizes that they give to text, and one of the page's own.
    "fonts": () => ["serif", "sans-serif", "monospace", "cursive", "fantasy", "system-ui", "NoSuchFont"].map(family =>
        width(family, "Wide mill, fi, Ünïcode, Ελληνικά, кириллица, 日本語, العربية, 🂡")),
    "web font": async () => {
        const before = width("Own, monospace", "Wide mill");
        const style = document.createElement("style");
        style.textContent = "@font-face { font-family: Own; src: url(/font.ttf) }";
        document.head.append(style);
        return await until(() => {
            const after = width("Own, monospace", "Wide mill");
            return String(after) != String(before) && after;
        });
    },

    "layout": () => {
        const box = document.createElement("div");
        box.innerHTML = `<div style="display: grid; grid-template-columns: 1fr 2fr; width: 300px">
            <p>first</p><p>second, which is longer and wraps somewhere in the middle</p></div>
            <div style="display: flex; width: 300px"><b style="flex: 1">a</b><i style="flex: 2">b</i></div>
            <table><tr><td>cell<td>other cell</table><ul><li>item</ul>
            <div style="columns: 2; width: 200px">${"word ".repeat(50)}</div>`;
        document.body.append(box);
        const sizes = Array.from(box.querySelectorAll("*"), element => {
            const { left, width, height } = element.getBoundingClientRect();
            return [element.localName, left, width, height];
        });
        box.remove();
        return sizes;
    },
    // Enough elements for the style threads.
    "many elements": () => {
        const box = document.createElement("div");
        box.innerHTML = "<section><p>one<b>two</b></p></section>".repeat(500);
        document.body.append(box);
        const { height } = box.getBoundingClientRect();
        box.remove();
        return height;
    },

    "fetch": async () => {
        const response = await fetch("/echo", { method: "POST", body: "x".repeat(100_000) });
        return [response.status, await digest(await response.arrayBuffer())];
    },
    "stream": async () => {
        const reader = (await fetch("/echo", { method: "POST", body: "a stream" })).body.getReader();
        const bytes = [];
        for (;;) {
            const { done, value } = await reader.read();
            if (done)
                return String.fromCharCode(...bytes);
            bytes.push(...value);
        }
    },
    "XMLHttpRequest": () => new Promise(resolve => {
        const request = new XMLHttpRequest();
        request.open("POST", "/echo");
        request.onload = () => resolve([request.status, request.responseText]);
        request.send("body");
    }),
    "synchronous XMLHttpRequest": () => {
        const request = new XMLHttpRequest();
        request.open("POST", "/echo", false);
        request.send("body");
        return [request.status, request.responseText];
    },
    "image": async () => {
        const image = new Image();
        image.src = "/image.png";
        await new Promise((resolve, reject) => (image.onload = resolve, image.onerror = reject));
        return [image.naturalWidth, image.naturalHeight];
    },

    "form": async () => {
        const form = new FormData();
        form.append("text", "value");
        form.append("file", new File(["content of a file".repeat(1000)], "name.txt", { type: "text/plain" }));
        const sent = await (await fetch("/echo", { method: "POST", body: form })).text();
        return sent.replaceAll(/-{4,}[^\r\n]*/g, "boundary");
    },
    // Parsed in the content process.
    "Response.formData": async () => {
        const form = new FormData();
        form.append("text", "value");
        form.append("file", new File(["content of a file".repeat(1000)], "name.txt", { type: "text/plain" }));
        const back = await new Response(form).formData();
        const file = back.get("file");
        return [back.get("text"), file.name, file.type, await digest(await file.arrayBuffer())];
    },
    // The file that the test has put into the field. The main process reads it.
    "chosen file": async () => {
        const [file] = document.querySelector("input[type=file]").files;
        const reader = new FileReader();
        const loaded = new Promise((resolve, reject) => (reader.onload = resolve, reader.onerror = reject));
        reader.readAsArrayBuffer(file.slice(10, 100));
        await loaded;
        return [file.name, file.size, file.type, await digest(await file.arrayBuffer()), await digest(reader.result)];
    },
    "upload by fetch": async () => {
        const form = new FormData(document.querySelector("form"));
        const sent = await (await fetch("/echo", { method: "POST", body: form })).text();
        return await digest(new TextEncoder().encode(sent.replaceAll(/-{4,}[^\r\n]*/g, "boundary")));
    },
    "upload by a form": async () => {
        const frame = document.createElement("iframe");
        frame.name = "uploaded";
        document.body.append(frame);
        document.querySelector("form").submit();
        const text = await until(() => frame.contentDocument?.body?.textContent.includes("end of the file")
            && frame.contentDocument.body.textContent);
        frame.remove();
        return await digest(new TextEncoder().encode(text.replaceAll(/-{4,}[^\r\n]*/g, "boundary")));
    },
    "form in a frame": async () => {
        const frame = document.createElement("iframe");
        frame.name = "target";
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, { method: "post", enctype: "multipart/form-data", action: "/echo-page", target: "target" });
        form.innerHTML = `<input name=text value="some text"><input type=checkbox name=check checked>
            <select name=choice><option>1<option selected>2</select><textarea name=area>lines</textarea>`;
        document.body.append(form);
        form.submit();
        const text = await until(() => frame.contentDocument?.body?.textContent.includes("lines")
            && frame.contentDocument.body.textContent);
        frame.remove();
        form.remove();
        return text.replaceAll(/-{4,}[^\r\n]*/g, "boundary");
    },
    "Blob": async () => {
        const blob = new Blob(["some ", "text"]);
        const url = URL.createObjectURL(blob);
        return [await (await fetch(url)).text(), await blob.slice(5).text()];
    },
    "FileReader": () => new Promise(resolve => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.readAsDataURL(new Blob(["text"]));
    }),

    "worker": async () => {
        const worker = new Worker("/worker.js");
        const answer = message(worker);
        worker.postMessage([1, 2, 3]);
        return await answer;
    },
    "many workers": async () => {
        const answers = Array.from({ length: 8 }, (_, index) => {
            const worker = new Worker("/worker.js");
            const answer = message(worker);
            worker.postMessage([index, 1]);
            return answer;
        });
        return await Promise.all(answers);
    },
    // Runs in a process of its own.
    "service worker": async () => {
        const container = navigator.serviceWorker;
        const answer = message(container);
        const registration = await container.register("/service-worker.js", { scope: "/scope/" });
        const worker = registration.active || registration.waiting || registration.installing;
        worker.postMessage([1, 2, 3]);
        const answered = await answer;
        const unregistered = await registration.unregister();
        return [new URL(registration.scope).pathname, answered, unregistered];
    },

    "wasm": async () => {
        const { instance } = await WebAssembly.instantiate(MODULE);
        let sum = 0;
        for (let index = 0; index < 100_000; ++index)
            sum = instance.exports.add(sum, index);
        return sum;
    },
    "wasm memory": () => {
        const memory = new WebAssembly.Memory({ initial: 1, maximum: 100 });
        memory.grow(50);
        return memory.buffer.byteLength;
    },
    // Long enough for the compilers of the JavaScript engine.
    "hot loop": () => {
        const step = (hash, value) => Math.imul(hash ^ value, 16777619) >>> 0;
        let hash = 2166136261;
        for (let index = 0; index < 3_000_000; ++index)
            hash = step(hash, index);
        return hash;
    },
    "regular expressions": () => "a1b22c333".repeat(1000).replaceAll(/([a-z])(\d+)/g, "$2$1").length,
    "garbage": () => {
        let last;
        for (let index = 0; index < 200_000; ++index)
            last = { index, array: new Array(16).fill(index), last: null };
        return last.array.length;
    },
    "large arrays": () => new Uint8Array(64 * 1024 * 1024).fill(3).at(-1),

    "canvas": async () => {
        const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d");
        context.fillStyle = "teal";
        context.fillRect(10, 10, 50, 50);
        context.arc(100, 75, 40, 0, 4);
        context.stroke();
        context.font = "30px serif";
        context.fillText("Text", 20, 100);
        return [await digest(context.getImageData(0, 0, 300, 150).data), context.measureText("Text").width,
            canvas.toDataURL().length];
    },
    "OffscreenCanvas": () => {
        const context = new OffscreenCanvas(20, 20).getContext("2d");
        context.fillRect(0, 0, 10, 10);
        return context.getImageData(5, 5, 1, 1).data.toString();
    },
    "WebGL": () => {
        const gl = document.createElement("canvas").getContext("webgl");
        if (!gl)
            return "no WebGL here";
        const shader = (kind, text) => {
            const shader = gl.createShader(kind);
            gl.shaderSource(shader, text);
            gl.compileShader(shader);
            return shader;
        };
        const program = gl.createProgram();
        gl.attachShader(program, shader(gl.VERTEX_SHADER, "attribute vec4 at; void main() { gl_Position = at; }"));
        gl.attachShader(program, shader(gl.FRAGMENT_SHADER, "void main() { gl_FragColor = vec4(0.0, 1.0, 0.0, 1.0); }"));
        gl.linkProgram(program);
        gl.useProgram(program);
        gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
        gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
        const at = gl.getAttribLocation(program, "at");
        gl.enableVertexAttribArray(at);
        gl.vertexAttribPointer(at, 2, gl.FLOAT, false, 0, 0);
        gl.drawArrays(gl.TRIANGLES, 0, 3);
        const pixel = new Uint8Array(4);
        gl.readPixels(5, 5, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
        return [pixel.toString(), gl.getError()];
    },

    // In a time zone with summer time, which the test sets.
    "dates": () => [
        new Date(2024, 0, 15, 12).toString(), new Date(2024, 6, 15, 12).toString(), new Date(0).getTimezoneOffset(),
        new Date(Date.UTC(2024, 2, 31, 1)).getHours(),
    ],
    "Intl": () => typeof Intl == "undefined" ? "none" : [
        Intl.DateTimeFormat().resolvedOptions().timeZone,
        new Intl.DateTimeFormat("de", { dateStyle: "full", timeStyle: "long", timeZone: "Asia/Tokyo" }).format(0),
        new Intl.NumberFormat("hi-IN").format(1234567.89),
        ["z", "ä", "a"].sort(new Intl.Collator("sv").compare),
    ],

    "localStorage": () => {
        localStorage.setItem("key", "value");
        return localStorage.getItem("key");
    },
    "sessionStorage": () => {
        sessionStorage.setItem("key", "value");
        return sessionStorage.getItem("key");
    },
    "cookies": () => {
        document.cookie = "name=value; path=/";
        return document.cookie;
    },
    "IndexedDB": () => typeof indexedDB == "undefined" ? "none" : new Promise((resolve, reject) => {
        const opening = indexedDB.open("base", 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore("things");
        opening.onerror = () => reject(opening.error);
        opening.onsuccess = () => {
            const things = opening.result.transaction("things", "readwrite").objectStore("things");
            const putting = things.put({ value: 1 }, "key");
            putting.onerror = () => reject(putting.error);
            putting.onsuccess = () => {
                const getting = things.get("key");
                getting.onsuccess = () => resolve(getting.result);
                getting.onerror = () => reject(getting.error);
            };
        };
    }),

    "cryptography": async () => {
        const random = crypto.getRandomValues(new Uint8Array(32));
        const key = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, true, ["encrypt", "decrypt"]);
        const cipher = await crypto.subtle.encrypt({ name: "AES-GCM", iv: new Uint8Array(12) }, key, random);
        const plain = await crypto.subtle.decrypt({ name: "AES-GCM", iv: new Uint8Array(12) }, key, cipher);
        return [cipher.byteLength, await digest(plain) == await digest(random)];
    },
    "timers": () => new Promise(resolve => setTimeout(() => requestAnimationFrame(() => resolve("done")), 10)),
    "performance": () => performance.now() > 0,
    "hardware": () => navigator.hardwareConcurrency,
    "audio": () => typeof AudioContext,
    "WebSocket": () => new Promise(resolve => {
        // Nobody answers in this protocol; the attempt has to end.
        const socket = new WebSocket(location.origin.replace("http", "ws") + "/echo");
        socket.onerror = () => resolve("error");
        socket.onopen = () => resolve("open");
    }),
    "another site": async () => {
        const frame = document.createElement("iframe");
        const answer = message(window);
        frame.src = self.otherSite;
        document.body.append(frame);
        const data = await answer;
        frame.remove();
        return data;
    },
};

self.ordinary = async () => {
    const results = {};
    for (const [name, check] of Object.entries(CHECKS)) {
        const late = new Promise(resolve => setTimeout(resolve, 8000, "late"));
        try {
            results[name] = await Promise.race([late, Promise.resolve(check())]);
        } catch (error) {
            results[name] = `${error.name}: ${error.message}`;
        }
    }
    return results;
};
