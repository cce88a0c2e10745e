/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// GlobalPlatform Web API for Accessing Secure Element, version 1.0
// https://globalplatform.github.io/WebApis-for-SE/doc/

// Section 8
[SecureContext]
partial interface Navigator {
  [SameObject, Pref="dom_secure_element_enabled"]
  readonly attribute SecureElementManager secureElementManager;
};

// Section 9
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface SecureElementManager : EventTarget {
  attribute EventHandler onsepresent;
  attribute EventHandler onseremoval;
  Promise<sequence<Reader>?> getReaders();
  Promise<undefined> shutdown();
};

// Section 9.3
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface ReaderEvent : Event {
  constructor(DOMString type, ReaderEventInit eventInitDict);
  readonly attribute Reader reader;
};

dictionary ReaderEventInit : EventInit {
  required Reader reader;
};

// Section 10.3
enum SecureElementType { "uicc", "smartcard", "ese", "sd", "other" };

// Section 10
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface Reader {
  readonly attribute boolean isSEPresent;
  readonly attribute DOMString name;
  readonly attribute SecureElementType secureElementType;
  readonly attribute boolean isRemovable;
  Promise<Session> openSession();
  Promise<undefined> closeSessions();
  Promise<undefined> reset();
};

// Section 11
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface Session {
  readonly attribute Reader reader;
  readonly attribute Uint8Array? historicalBytes;
  Promise<Channel> openBasicChannel(Uint8Array? aid, optional octet p2 = 0);
  Promise<Channel> openSupplementaryChannel(Uint8Array? aid, optional octet p2 = 0);
  Promise<undefined> close();
};

// Section 12.3
enum ChannelType { "basic", "supplementary" };

// Section 12
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface Channel {
  readonly attribute Session session;
  readonly attribute ChannelType channelType;
  readonly attribute SEResponse? openResponse;
  attribute long? timeout;
  Promise<SEResponse> selectNext();
  Promise<SEResponse> transmit(SECommand cmd);
  Promise<Uint8Array> transmitRaw(Uint8Array cmd);
  Promise<undefined> close();
};

// Section 13
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface SECommand {
  constructor(octet cla, octet ins, octet p1, octet p2,
              optional Uint8Array? data = null, optional unsigned short? le = null,
              optional boolean isExtended = false);
  attribute octet cla;
  attribute octet ins;
  attribute octet p1;
  attribute octet p2;
  attribute Uint8Array? data;
  attribute unsigned short? le;
  attribute boolean isExtended;
};

// Section 14
[SecureContext, Exposed=Window, Pref="dom_secure_element_enabled"]
interface SEResponse {
  [Throws] constructor(Uint8Array raw);
  readonly attribute Channel? channel;
  readonly attribute octet sw1;
  readonly attribute octet sw2;
  readonly attribute Uint8Array data;
  boolean isStatus(octet? sw1, octet? sw2);
};
