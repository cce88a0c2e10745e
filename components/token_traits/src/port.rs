/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a document and the broker say to each other.
//!
//! A port may have many requests in flight; each is answered exactly once, in any order, unless the port closes.
//! Ids of readers, sessions and channels mean something within one port only.

use serde::{Deserialize, Serialize};

use crate::error::TokenError;
use crate::feature::{Feature, PermissionState};
use crate::keys::{KeysReply, KeysRequest, TokenInfo};

/// Most requests that a port may have in flight; one more closes the port.
pub const MAX_REQUESTS_IN_FLIGHT: usize = 256;

/// The longest command APDU, in bytes: a header, two extended length fields and 65,535 bytes of data.
pub const MAX_COMMAND_LENGTH: usize = 4 + 3 + 65_535 + 2;

/// The longest response APDU, in bytes: 65,536 bytes of data and the status word.
pub const MAX_RESPONSE_LENGTH: usize = 65_536 + 2;

/// The longest AID, in bytes (ISO 7816-4, 8.2.1.2).
pub const MAX_AID_LENGTH: usize = 16;

/// Chosen by the document, unique among its requests in flight.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct RequestId(pub u64);

/// A reader, as this port sees it. Stable while the reader is plugged in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ReaderId(pub u32);

/// A session that this port opened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct SessionId(pub u32);

/// A channel that this port opened. Not the number that the card gave it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ChannelId(pub u32);

/// One request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortRequest {
    /// Names the reply.
    pub id: RequestId,
    /// What is asked.
    pub body: RequestBody,
}

/// What a document can ask for: the calls of the GP Web API for Accessing Secure Element 1.0, and those about keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RequestBody {
    /// `SecureElementManager.getReaders()`. Answered by [`ReplyBody::Readers`].
    GetReaders,
    /// A listener for the events of `SecureElementManager` was attached. Answered by [`ReplyBody::Done`], after a
    /// [`PortMessage::Element`] for each element that is present.
    WatchElements,
    /// `navigator.permissions.query()`. Answered by [`ReplyBody::Permission`].
    QueryPermission(Feature),
    /// `SecureElementManager.shutdown()`. Answered by [`ReplyBody::Done`].
    Shutdown,
    /// `Reader.openSession()`. Answered by [`ReplyBody::Session`].
    OpenSession(ReaderId),
    /// `Reader.closeSessions()`. Answered by [`ReplyBody::Done`].
    CloseSessions(ReaderId),
    /// `Reader.reset()`. Answered by [`ReplyBody::Done`].
    Reset(ReaderId),
    /// `Session.openBasicChannel()` and `openSupplementaryChannel()`. Answered by [`ReplyBody::Channel`].
    OpenChannel {
        /// The session to open it in.
        session: SessionId,
        /// Which of the two.
        channel_type: ChannelType,
        /// The AID, complete or partial, at most [`MAX_AID_LENGTH`] bytes; empty for the issuer security domain;
        /// `None` for the implicitly selected applet.
        aid: Option<Vec<u8>>,
        /// P2 of the SELECT command: 0x00, 0x04, 0x08 or 0x0C.
        p2: u8,
    },
    /// `Session.close()`. Answered by [`ReplyBody::Done`], also when it is closed already.
    CloseSession(SessionId),
    /// `Channel.transmit()` and `transmitRaw()`. Answered by [`ReplyBody::Response`].
    Transmit {
        /// The channel to send it on.
        channel: ChannelId,
        /// What to send. The channel bits of its class byte are ignored.
        command: Command,
        /// `Channel.timeout`, in milliseconds from the moment that the broker takes the request; `None` for the
        /// broker's own limit.
        timeout_ms: Option<u32>,
    },
    /// `Channel.selectNext()`. Answered by [`ReplyBody::Response`].
    SelectNext {
        /// The channel whose applet is to change.
        channel: ChannelId,
        /// As in [`RequestBody::Transmit`].
        timeout_ms: Option<u32>,
    },
    /// `Channel.close()`. Answered by [`ReplyBody::Done`], also when it is closed already.
    CloseChannel(ChannelId),
    /// About keys in tokens. Answered by [`ReplyBody::Keys`].
    Keys(KeysRequest),
}

/// A command APDU, as the page gave it. Nothing in it has been checked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Command {
    /// `transmitRaw()`: the encoded APDU, at most [`MAX_COMMAND_LENGTH`] bytes.
    Raw(#[serde(with = "serde_bytes")] Vec<u8>),
    /// `transmit()`: an `SECommand` (GP Web API, section 13).
    Fields {
        /// CLA, INS, P1, P2.
        header: [u8; 4],
        /// The data field, at most 65,535 bytes; `None` and empty mean that there is none.
        #[serde(with = "serde_bytes")]
        data: Option<Vec<u8>>,
        /// The length of the expected response data: `None` for no Le field, 0 for "as much as there is" (256, or
        /// 65,536 where the encoding is extended).
        le: Option<u16>,
        /// Whether to use the extended length encoding even where the short one would do.
        extended: bool,
    },
}

/// `ChannelType` of the GP Web API, section 12.3.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum ChannelType {
    /// Channel 0.
    Basic,
    /// Channel 1 to 19.
    Supplementary,
}

/// `SecureElementType` of the GP Web API, section 10.3.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum ElementType {
    /// A UICC.
    Uicc,
    /// A smart card: contacts, contactless or USB token.
    SmartCard,
    /// Embedded in the device.
    Embedded,
    /// An SD card.
    Sd,
    /// Anything else.
    Other,
}

impl ElementType {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Uicc,
        Self::SmartCard,
        Self::Embedded,
        Self::Sd,
        Self::Other,
    ];
}

/// What the broker sends to a document.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PortMessage {
    /// The one answer to a request.
    Reply {
        /// The request's id.
        request: RequestId,
        /// What came of it.
        result: Result<ReplyBody, TokenError>,
    },
    /// An element has come into a reader (`sepresent`) or has gone from it (`seremoval`), whichever
    /// [`ReaderInfo::present`] says. Sent without being asked to a document that has asked for the readers or watches,
    /// as long as it may see the reader. What was open on an element that has gone is closed by then.
    Element(ReaderInfo),
    /// A token has come (`tokeninserted`) or has gone (`tokenremoved`), whichever [`TokenInfo::present`] says. Sent to a
    /// document that watches, as long as its origin has a grant for the token or for a key in it.
    Token(TokenInfo),
}

/// A successful answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ReplyBody {
    /// The readers that this origin may see; empty for an origin without a grant.
    Readers(Vec<ReaderInfo>),
    /// A session is open.
    Session(SessionInfo),
    /// A channel is open.
    Channel(ChannelInfo),
    /// A response APDU, at least 2 bytes, at most [`MAX_RESPONSE_LENGTH`].
    Response(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It is done and there is nothing to tell.
    Done,
    /// Whether the document may use a feature, or would have to ask.
    Permission(PermissionState),
    /// About keys in tokens.
    Keys(KeysReply),
}

/// A reader as a page sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReaderInfo {
    /// Names it in requests.
    pub id: ReaderId,
    /// The reader's name, printable, at most 128 characters.
    pub name: String,
    /// What kind of element it gives access to.
    pub element_type: ElementType,
    /// Whether the element can be taken out while the device runs.
    pub removable: bool,
    /// Whether there is an element in it.
    pub present: bool,
}

/// A session that was opened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionInfo {
    /// Names it in requests.
    pub id: SessionId,
    /// The historical bytes of the ATR (ISO 7816-4, 12.1.1), at most 15 bytes; `None` if the interface has none.
    pub historical_bytes: Option<Vec<u8>>,
}

/// A channel that was opened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChannelInfo {
    /// Names it in requests.
    pub id: ChannelId,
    /// The response APDU of the SELECT command; `None` where none was sent.
    pub open_response: Option<Vec<u8>>,
}
