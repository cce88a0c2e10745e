/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// The echo applet of the virtual card, which these tests run against.
const ECHO_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x4C, 0x45, 0x43, 0x48, 0x4F, 0x01);
// The first bytes of its AID.
const ECHO_PARTIAL_AID = ECHO_AID.slice(0, 8);
// No applet has this one.
const UNKNOWN_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x4C, 0x4E, 0x4F, 0x4E, 0x45, 0x01);
// Answers with the command's data.
const INS_ECHO = 0x10;
// No applet knows this one.
const INS_UNKNOWN = 0x7E;

// More channels than any card has (ISO/IEC 7816-4, 5.4.1: 20).
const TOO_MANY_CHANNELS = 21;

const CHANNEL_OPENERS = ["openBasicChannel", "openSupplementaryChannel"];

function grant() {
  return test_driver.set_permission({name: "secure-element"}, "granted");
}

async function get_reader() {
  await grant();
  const readers = await navigator.secureElementManager.getReaders();
  assert_equals(readers.length, 1, "the virtual card's reader");
  return readers[0];
}

// Opens a session that is closed after the test.
async function open_session(t) {
  const session = await (await get_reader()).openSession();
  t.add_cleanup(() => session.close());
  return session;
}

async function open_echo_channel(t) {
  return (await open_session(t)).openSupplementaryChannel(ECHO_AID);
}

function echo_command(data, cla = 0x00) {
  return new SECommand(cla, INS_ECHO, 0x00, 0x00, data, 0);
}

function bytes(length) {
  return Uint8Array.from({length}, (_, index) => index % 251);
}

function assert_status(response, sw1, sw2) {
  const text = response => [response.sw1, response.sw2].map(byte => byte.toString(16)).join(" ");
  assert_true(response.isStatus(sw1, sw2), `status is ${text(response)}, expected ${text({sw1, sw2})}`);
}

// Names of the specification are not those of the DOM, so that assert_throws_dom() does not know them.
function assert_is_secure_element_exception(name, error) {
  assert_true(error instanceof DOMException, `a DOMException, not ${error}`);
  assert_equals(error.name, name);
  assert_equals(error.code, 0, "no legacy code");
}

async function promise_rejects_secure_element(name, promise, description = "") {
  let error;
  try {
    await promise;
  } catch (reason) {
    error = reason;
  }
  assert_not_equals(error, undefined, `${description}: it was fulfilled`);
  assert_is_secure_element_exception(name, error);
}

// The value of the first DO with this one-byte tag in BER-TLV of short lengths; the template's tag comes first.
function find_in_template(data, template, tag) {
  assert_equals(data[0], template, "the template's tag");
  assert_equals(data[1], data.length - 2, "the template's length");
  for (let at = 2; at < data.length; at += 2 + data[at + 1]) {
    if (data[at] === tag) {
      return data.slice(at + 2, at + 2 + data[at + 1]);
    }
  }
  return null;
}
