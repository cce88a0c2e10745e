/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// These tests run with a token in software whose PIN the browser's user has entered.

const RSA = {modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: "SHA-256"};
const RSASSA = {name: "RSASSA-PKCS1-v1_5", ...RSA};
const RSA_PSS = {name: "RSA-PSS", ...RSA};
const RSA_OAEP = {name: "RSA-OAEP", ...RSA};
const ECDSA = {name: "ECDSA", namedCurve: "P-256"};
const ECDH = {name: "ECDH", namedCurve: "P-256"};

const DATA = new TextEncoder().encode("The quick brown fox jumps over the lazy dog");

const subtle = crypto.subtle;

function grant(view = null) {
  return test_driver.set_permission({name: "token-keys"}, "granted", view);
}

function revoke(view = null) {
  return test_driver.set_permission({name: "token-keys"}, "denied", view);
}

// A token that keys can be made in.
async function get_token() {
  await grant();
  const [token] = await cryptokeys.getTokens({provisionable: true});
  assert_not_equals(token, undefined, "a token");
  // The user is asked for the PIN only just after they have done something in the page.
  await test_driver.bless("use a token");
  return token;
}

let names = 0;

// A name that no other test uses.
function new_name() {
  names += 1;
  return `${location.pathname} ${performance.timeOrigin} ${names}`;
}

// Makes a key that is deleted after the test.
async function generate_key(t, token, algorithm, usages, options = {}) {
  const result = await token.generateKey(algorithm, usages, {name: new_name(), ...options});
  const key = result.privateKey ?? result;
  t.add_cleanup(() => token.deleteKey(key).catch(() => {}));
  return result;
}

function assert_same_bytes(actual, expected, description) {
  assert_array_equals(new Uint8Array(actual), new Uint8Array(expected), description);
}

// A frame with a page that answers what frame.ask() asks: see remote.html.
async function add_frame(t, origin, attributes = {}) {
  const frame = document.createElement("iframe");
  Object.assign(frame, attributes);
  const loaded = new Promise(resolve => {
    addEventListener("message", function listen({source, data}) {
      if (source === frame.contentWindow && data === "ready") {
        removeEventListener("message", listen);
        resolve();
      }
    });
  });
  frame.src = `${origin}/webcrypto-key-discovery/resources/remote.html`;
  document.body.append(frame);
  t.add_cleanup(() => frame.remove());
  await loaded;
  return {
    view: frame.contentWindow,
    ask(action, ...parameters) {
      const {port1, port2} = new MessageChannel();
      return new Promise(resolve => {
        port1.onmessage = ({data}) => resolve(data);
        frame.contentWindow.postMessage({action, parameters}, "*", [port2]);
      });
    },
  };
}
