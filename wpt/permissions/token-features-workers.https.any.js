// META: title=Permissions: secure-element and token-keys in workers
// META: global=worker
/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// Nothing in a worker could use them.

for (const name of ["secure-element", "token-keys"]) {
  promise_test(async t => {
    assert_equals((await navigator.permissions.query({name})).state, "denied");
  }, name);
}
