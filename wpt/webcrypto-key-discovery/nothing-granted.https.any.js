// META: title=WebCrypto Key Discovery: what an origin sees that has been granted nothing
// META: global=window,worker
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

test(() => {
  assert_true(self.isSecureContext);
  assert_true(cryptokeys instanceof CryptoKeys);
  assert_equals(cryptokeys, cryptokeys);
}, "cryptokeys is one object");

test(() => {
  assert_equals("requestKey" in cryptokeys, self.GLOBAL.isWindow());
  assert_equals("requestToken" in cryptokeys, self.GLOBAL.isWindow());
}, "Only windows can have the user choose");

promise_test(async () => {
  assert_equals(await cryptokeys.getKeyByName("a name that no key has"), null);
  assert_equals(await cryptokeys.getKeyByName(""), null);
}, "getKeyByName() resolves with null");

promise_test(async () => {
  assert_array_equals(await cryptokeys.getKeys(), []);
  assert_array_equals(await cryptokeys.getKeys({name: "name", algorithm: "ECDSA", usages: ["sign"]}), []);
}, "getKeys() resolves with an empty array");

promise_test(async () => {
  assert_array_equals(await cryptokeys.getTokens(), []);
  assert_array_equals(await cryptokeys.getTokens({label: "label", minimumProtection: "hardware"}), []);
}, "getTokens() resolves with an empty array");
