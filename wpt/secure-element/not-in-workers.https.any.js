// META: title=The Secure Element API is not exposed to workers
// META: global=worker
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// 9.3 exposes ReaderEvent to workers, but nothing that could fire it.

test(() => {
  assert_true(self.isSecureContext);
  assert_false("secureElementManager" in navigator);
}, "navigator.secureElementManager");

for (const name of [
  "SecureElementManager", "ReaderEvent", "Reader", "Session", "Channel", "SECommand", "SEResponse",
]) {
  test(() => assert_false(name in self), name);
}
