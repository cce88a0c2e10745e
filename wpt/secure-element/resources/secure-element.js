/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

"use strict";

// Applets of the virtual card, which these tests run against; components/virtual_card describes them.
// They echo, and answer as they are told to.
const ECHO_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x01);
const SECOND_ECHO_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x01, 0x02);
// What both of them, and no others, begin with; the first one comes first.
const ECHO_PARTIAL_AID = ECHO_AID.slice(0, 7);
// Its SELECT answers with a warning, 6283.
const WARNING_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x02, 0x01);
// Behaves as the applet of the Android compatibility test suite.
const CONFORMANCE_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x06, 0x31);
// An echo applet that can be selected on one channel at a time.
const EXCLUSIVE_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x03, 0x01);
// What all of them begin with.
const COMMON_PARTIAL_AID = ECHO_AID.slice(0, 6);
// No applet has this one.
const UNKNOWN_AID = Uint8Array.of(0xF0, 0x53, 0x45, 0x52, 0x56, 0x4F, 0x7F, 0x7F);
// What empty AIDs select, and what is selected by default.
const ISSUER_SECURITY_DOMAIN_AID = Uint8Array.of(0xA0, 0x00, 0x00, 0x01, 0x51, 0x00, 0x00, 0x00);

// Answers with the command's data.
const INS_ECHO = 0x10;
// Answers with P1 P2 bytes: those of bytes().
const INS_PATTERN = 0x14;
// Answers with the command's data and the status word P1 P2.
const INS_STATUS = 0x16;
// Answers with the command's data, P1 P2 times 10 ms later.
const INS_DELAY = 0x18;
// Fails as P1 says.
const INS_FAULT = 0x1A;
const FAULT_EMPTY = 0x00;
const FAULT_ONE_BYTE = 0x01;
const FAULT_MUTE = 0x02;
const FAULT_REMOVAL = 0x04;
const FAULT_TOO_LONG = 0x05;
const FAULT_GARBAGE = 0x06;
// The next command of a kind is answered with the data; P2 01: and carried out.
const FAULT_OPEN = 0x10;
const FAULT_SELECT = 0x11;
const FAULT_CLOSE = 0x12;
const FAULT_RESET_BASIC = 0x13;
// Answers with the number of the channel and the class byte, as they arrived.
const INS_CHANNEL = 0x1C;
// Answers with how many commands the applet has carried out since the element was last reset, in 4 bytes.
const INS_COUNT = 0x1E;
// Answers with the channels that are open in the element, a bit each, in 3 bytes.
const INS_OPEN_CHANNELS = 0x30;
// No applet knows this one.
const INS_UNKNOWN = 0x7E;

// How many supplementary channels the virtual card has: all that there can be (ISO/IEC 7816-4, 5.4.1).
const SUPPLEMENTARY_CHANNELS = 19;

const CHANNEL_OPENERS = ["openBasicChannel", "openSupplementaryChannel"];

// How long a test waits for what should come at once, in milliseconds. It is not a measure of quickness: the machine
// may be busy.
const SOON = 5000;
// How long a test waits for what should not come, in milliseconds.
const FOR_SURE = 500;

function grant(view = null) {
  return test_driver.set_permission({name: "secure-element"}, "granted", view);
}

function revoke(view = null) {
  return test_driver.set_permission({name: "secure-element"}, "denied", view);
}

// The virtual card's reader, with the card in it, as the document of `view` sees it.
async function get_reader(view = window) {
  await grant();
  const manager = view.navigator.secureElementManager;
  let readers = await manager.getReaders();
  // An earlier test may have taken the card out. It comes back by itself.
  const deadline = performance.now() + SOON;
  while (!readers[0]?.isSEPresent && performance.now() < deadline) {
    await new Promise(resolve => step_timeout(resolve, 20));
    readers = await manager.getReaders();
  }
  assert_equals(readers.length, 1, "the virtual card's reader");
  assert_true(readers[0].isSEPresent, "the virtual card is in its reader");
  return readers[0];
}

// Opens a session that is closed after the test: with its document, if that is a frame's.
async function open_session(t, view = window) {
  const session = await (await get_reader(view)).openSession();
  if (view === window) {
    t.add_cleanup(() => session.close());
  }
  return session;
}

async function open_echo_channel(t, view = window) {
  return (await open_session(t, view)).openSupplementaryChannel(ECHO_AID);
}

function echo_command(data, cla = 0x00) {
  return new SECommand(cla, INS_ECHO, 0x00, 0x00, data, 0);
}

// Keeps the element busy for a multiple of 10 ms.
function delay_command(milliseconds, data = null) {
  const count = milliseconds / 10;
  return new SECommand(0x00, INS_DELAY, count >> 8, count & 0xFF, data, 0);
}

// How many commands the channel's applet has carried out.
async function count_commands(channel) {
  const {data} = await channel.transmit(new SECommand(0x00, INS_COUNT, 0x00, 0x00, null, 0));
  assert_equals(data.length, 4);
  return new DataView(data.buffer, data.byteOffset, 4).getUint32(0);
}

// The numbers of the channels that are open in the element, the basic channel included.
async function open_channels(channel) {
  const {data} = await channel.transmit(new SECommand(0x00, INS_OPEN_CHANNELS, 0x00, 0x00, null, 0));
  assert_equals(data.length, 3);
  const bits = data[0] << 16 | data[1] << 8 | data[2];
  return Array.from({length: 20}, (_, number) => number).filter(number => bits & 1 << number);
}

// Fails unless the applet echoes.
async function assert_echoes(channel, description = "") {
  const response = await channel.transmit(echo_command(bytes(5)));
  assert_status(response, 0x90, 0x00, description);
  assert_array_equals(response.data, bytes(5), description);
}

// Fails unless all supplementary channels of the element are free.
async function assert_all_channels_are_free(session) {
  const channels = [];
  while (channels.length < SUPPLEMENTARY_CHANNELS) {
    channels.push(await session.openSupplementaryChannel(null));
  }
  await Promise.all(channels.map(channel => channel.close()));
}

function bytes(length) {
  return Uint8Array.from({length}, (_, index) => index % 251);
}

function hex(...bytes) {
  return bytes.map(byte => byte.toString(16).toUpperCase().padStart(2, "0")).join("");
}

// A view of nothing: its buffer went to somebody else.
function detached(array) {
  array.buffer.transfer();
  assert_equals(array.byteLength, 0);
  return array;
}

function assert_status(response, sw1, sw2, description = "") {
  assert_equals(hex(response.sw1, response.sw2), hex(sw1, sw2), `${description} status word`);
}

// Names of the specification are not those of the DOM, so that assert_throws_dom() does not know them.
function assert_is_secure_element_exception(name, error, description = "", view = window) {
  assert_true(error instanceof view.DOMException, `${description}: a DOMException, not ${error}`);
  assert_equals(error.name, name, `${description}: ${error.message}`);
  assert_equals(error.code, 0, `${description}: no legacy code`);
}

async function promise_rejects_secure_element(name, promise, description = "", view = window) {
  let error;
  try {
    await promise;
  } catch (reason) {
    error = reason;
  }
  assert_not_equals(error, undefined, `${description}: it was fulfilled`);
  assert_is_secure_element_exception(name, error, description, view);
}

// Every method of a channel but close() fails, as the channel is closed.
async function assert_channel_is_closed(channel, view = window) {
  for (const [method, ...parameters] of [
    ["transmit", new view.SECommand(0x00, INS_ECHO, 0x00, 0x00)],
    ["transmitRaw", Uint8Array.of(0x00, INS_ECHO, 0x00, 0x00)],
    ["selectNext"],
  ]) {
    await promise_rejects_secure_element("SEClosedException", channel[method](...parameters), method, view);
  }
}

// Every method of a session but close() fails, as the session is closed.
async function assert_session_is_closed(session, view = window) {
  for (const open of CHANNEL_OPENERS) {
    await promise_rejects_secure_element("SEClosedException", session[open](ECHO_AID), open, view);
  }
}

// The value of the first DO with this one-byte tag in BER-TLV of lengths up to 255; the template's tag comes first.
function find_in_template(data, template, tag) {
  // Where the value of the DO at `at` begins and ends (ISO/IEC 7816-4, 6.4).
  const value = at => {
    const is_long = data[at + 1] === 0x81;
    const start = at + (is_long ? 3 : 2);
    return [start, start + data[at + (is_long ? 2 : 1)]];
  };
  assert_equals(data[0], template, "the template's tag");
  const [first, end] = value(0);
  assert_equals(end, data.length, "the template's end");
  for (let at = first; at < end; at = value(at)[1]) {
    if (data[at] === tag) {
      return data.slice(...value(at));
    }
  }
  return null;
}

// The DF name in the answer to SELECT.
function df_name(response) {
  return find_in_template(response.data, 0x6F, 0x84);
}

// Adds a frame of this origin for the time of a test, and gives its window.
async function add_frame(t) {
  const frame = document.createElement("iframe");
  t.add_cleanup(() => frame.remove());
  frame.src = "/secure-element/resources/blank.html";
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  return frame.contentWindow;
}

// Adds a frame of another origin, or of this one (""), for the time of a test, which the permissions policy does not keep
// from anything unless `set_up` says so. `ask(action)` does one of the actions of
// remote.html in it: it gives what the action gave, or throws an object with the error's name.
async function add_remote_frame(t, origin, set_up = () => {}) {
  const frame = document.createElement("iframe");
  t.add_cleanup(() => frame.remove());
  const waiting = new Map();
  const listener = ({source, data: {id, value, error}}) => {
    if (source === frame.contentWindow && waiting.has(id)) {
      const {resolve, reject} = waiting.get(id);
      if (error === undefined) {
        resolve(value);
      } else {
        reject({name: error});
      }
    }
  };
  window.addEventListener("message", listener);
  t.add_cleanup(() => window.removeEventListener("message", listener));
  const answer = id => new Promise((resolve, reject) => waiting.set(id, {resolve, reject}));

  const ready = answer("ready");
  frame.src = `${origin}/secure-element/resources/remote.html`;
  frame.allow = "secure-element; token-keys";
  set_up(frame);
  document.body.append(frame);
  await ready;
  if (origin !== "") {
    // An earlier test may have given the origin the permission.
    await test_driver.set_permission({name: "secure-element"}, "prompt", frame.contentWindow);
  }

  let asked = 0;
  return {
    view: frame.contentWindow,
    ask(action) {
      const id = asked++;
      const answered = answer(id);
      frame.contentWindow.postMessage({id, action}, "*");
      return answered;
    },
  };
}

// Gives the next event of this type.
function next_event(t, target, type) {
  return new Promise((resolve, reject) => {
    target.addEventListener(type, resolve, {once: true});
    t.step_timeout(() => reject(new Error(`no ${type} within ${SOON} ms`)), SOON);
  });
}

// Lets some time pass in which something would happen if it did.
function a_while(t) {
  return new Promise(resolve => t.step_timeout(resolve, FOR_SURE));
}

// Takes the element out of its reader in the middle of a command on a channel of the echo applet. It comes back by
// itself a little later.
function remove_element(channel) {
  return promise_rejects_secure_element(
    "SEIoException", channel.transmit(new SECommand(0x00, INS_FAULT, FAULT_REMOVAL, 0x00)), "removal");
}
