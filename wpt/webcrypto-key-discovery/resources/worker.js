/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

onmessage = async ({data: {key, data}}) => {
  try {
    const found = await cryptokeys.getKeyByName(key.name);
    const tokens = await cryptokeys.getTokens();
    const signature = await crypto.subtle.sign({name: "ECDSA", hash: "SHA-256"}, key, data);
    postMessage({signature, name: found?.name, label: key.token.label, tokens: tokens.length});
  } catch (error) {
    postMessage({error: String(error)});
  }
};
