// META: script=/resources/WebIDLParser.js
// META: script=/resources/idlharness.js
// META: script=/resources/testdriver.js
// META: script=/resources/testdriver-vendor.js
// META: script=resources/token-keys.js
// META: timeout=long
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

idl_test(["webcrypto-key-discovery"], ["webcrypto", "html", "dom"], async (idl_array, t) => {
  // Objects first: those that cannot be had are failures of their own, and the rest is tested all the same.
  idl_array.add_objects({
    CryptoToken: ["token"],
    CryptoTokenEvent: ["new CryptoTokenEvent('tokeninserted', {token})"],
    TokenCryptoKey: ["key"],
  });
  self.token = await get_token();
  self.key = (await generate_key(t, self.token, ECDSA, ["sign", "verify"])).privateKey;
});
