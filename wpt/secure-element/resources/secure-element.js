/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// Applets of the virtual card, which these tests run against; components/virtual_card describes them.
// They echo, and answer as they are told to.
const ECHO_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x01);
const SECOND_ECHO_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x02);
// What both begin with; the first one comes first.
const ECHO_PARTIAL_AID = ECHO_AID.slice(0, 7);
// Its SELECT answers with a warning, 6283.
const WARNING_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x02, 0x01);
// No applet has this one.
const UNKNOWN_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x7F, 0x7F);
// What empty AIDs select.
const ISSUER_SECURITY_DOMAIN_AID = Uint8Array.of(0xA0, 0x00, 0x00, 0x01, 0x51, 0x00, 0x00, 0x00);

// Answers with the command's data.
const INS_ECHO = 0x10;
// Answers with P1 P2 bytes: those of bytes().
const INS_PATTERN = 0x14;
// Answers with the command's data and the status word P1 P2.
const INS_STATUS = 0x16;
// Answers with the command's data, P1 P2 times 10 ms later.
const INS_DELAY = 0x18;
// Answers with the number of the channel and the class byte, as they arrived.
const INS_CHANNEL = 0x1C;
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
