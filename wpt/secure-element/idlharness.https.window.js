// META: script=/resources/WebIDLParser.js
// META: script=/resources/idlharness.js
// META: script=/resources/testdriver.js
// META: script=/resources/testdriver-vendor.js
// META: script=resources/secure-element.js
// META: timeout=long
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

idl_test(["secure-element"], ["html", "dom"], async (idl_array, t) => {
  // Objects first: those that cannot be had are failures of their own, and the rest is tested all the same.
  idl_array.add_objects({
    Navigator: ["navigator"],
    SecureElementManager: ["navigator.secureElementManager"],
    ReaderEvent: ["new ReaderEvent('sepresent', {reader})"],
    Reader: ["reader"],
    Session: ["session"],
    Channel: ["channel"],
    SECommand: ["new SECommand(0x00, 0xCA, 0x9F, 0x7F)"],
    SEResponse: ["new SEResponse(Uint8Array.of(0x90, 0x00))", "channel.openResponse"],
  });
  self.reader = await get_reader();
  self.session = await self.reader.openSession();
  t.add_cleanup(() => self.session.close());
  self.channel = await self.session.openSupplementaryChannel(ECHO_AID);
});
