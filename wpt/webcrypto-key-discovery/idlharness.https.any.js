// META: global=window,dedicatedworker
// META: script=/resources/WebIDLParser.js
// META: script=/resources/idlharness.js
// META: timeout=long
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

idl_test(["webcrypto-key-discovery"], ["webcrypto", "html", "dom"], idl_array => {
  idl_array.add_objects({CryptoKeys: ["cryptokeys"]});
  if (self.GLOBAL.isWindow()) {
    idl_array.add_objects({Window: ["self"]});
  } else {
    idl_array.add_objects({WorkerGlobalScope: ["self"]});
  }
});
