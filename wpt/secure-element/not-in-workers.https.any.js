// META: global=dedicatedworker
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

test(() => {
  assert_true(self.isSecureContext);
  assert_false("secureElementManager" in navigator);
  for (const name of ["SecureElementManager", "ReaderEvent", "Reader", "Session", "Channel", "SECommand",
                      "SEResponse"]) {
    assert_false(name in self, name);
  }
}, "Workers do not have the Secure Element API");
