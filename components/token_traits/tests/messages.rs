/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Every message that travels in a frame arrives as it was sent.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde::Serialize;
use serde::de::DeserializeOwned;
use token_traits::control::{AccessConfig, BrokerConfig, WhenNoRules, WorkerKind};
use token_traits::port::{
    ChannelId, ChannelInfo, ChannelType, Command, ElementType, MAX_AID_LENGTH, PortMessage,
    PortRequest, ReaderId, ReaderInfo, ReplyBody, RequestBody, RequestId, SessionId, SessionInfo,
};
use token_traits::wire::{MAX_FRAME_LENGTH, WireError};
use token_traits::{
    Connection, ErrorKind, Feature, Frame, Origin, PermissionState, PortIdentity, TokenError,
};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..2000)
}

fn command() -> impl Strategy<Value = Command> {
    let fields = (
        any::<[u8; 4]>(),
        option::of(bytes()),
        any::<Option<u16>>(),
        any::<bool>(),
    );
    prop_oneof![
        bytes().prop_map(Command::Raw),
        fields.prop_map(|(header, data, le, extended)| Command::Fields {
            header,
            data,
            le,
            extended,
        }),
    ]
}

fn request_body() -> impl Strategy<Value = RequestBody> {
    let open_channel = (
        any::<u32>(),
        select(vec![ChannelType::Basic, ChannelType::Supplementary]),
        option::of(vec(any::<u8>(), 0..=MAX_AID_LENGTH)),
        any::<u8>(),
    );
    prop_oneof![
        Just(RequestBody::GetReaders),
        Just(RequestBody::WatchElements),
        select(Feature::ALL.to_vec()).prop_map(RequestBody::QueryPermission),
        Just(RequestBody::Shutdown),
        any::<u32>().prop_map(|id| RequestBody::OpenSession(ReaderId(id))),
        any::<u32>().prop_map(|id| RequestBody::CloseSessions(ReaderId(id))),
        any::<u32>().prop_map(|id| RequestBody::Reset(ReaderId(id))),
        open_channel.prop_map(|(id, channel_type, aid, p2)| RequestBody::OpenChannel {
            session: SessionId(id),
            channel_type,
            aid,
            p2,
        }),
        any::<u32>().prop_map(|id| RequestBody::CloseSession(SessionId(id))),
        (any::<u32>(), command(), any::<Option<u32>>()).prop_map(|(id, command, timeout_ms)| {
            RequestBody::Transmit {
                channel: ChannelId(id),
                command,
                timeout_ms,
            }
        }),
        any::<(u32, Option<u32>)>().prop_map(|(id, timeout_ms)| RequestBody::SelectNext {
            channel: ChannelId(id),
            timeout_ms,
        }),
        any::<u32>().prop_map(|id| RequestBody::CloseChannel(ChannelId(id))),
    ]
}

/// Does not compile with a variant that has no strategy above.
fn has_strategy(body: &RequestBody) -> bool {
    match body {
        RequestBody::GetReaders
        | RequestBody::QueryPermission(_)
        | RequestBody::WatchElements
        | RequestBody::Shutdown
        | RequestBody::OpenSession(_)
        | RequestBody::CloseSessions(_)
        | RequestBody::Reset(_)
        | RequestBody::OpenChannel { .. }
        | RequestBody::CloseSession(_)
        | RequestBody::Transmit { .. }
        | RequestBody::SelectNext { .. }
        | RequestBody::CloseChannel(_) => true,
    }
}

fn reader() -> impl Strategy<Value = ReaderInfo> {
    let element_type = select(vec![
        ElementType::Uicc,
        ElementType::SmartCard,
        ElementType::Embedded,
        ElementType::Sd,
        ElementType::Other,
    ]);
    (
        any::<u32>(),
        ".{0,128}",
        element_type,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(id, name, element_type, removable, present)| ReaderInfo {
            id: ReaderId(id),
            name,
            element_type,
            removable,
            present,
        })
}

fn error() -> impl Strategy<Value = TokenError> {
    let kind = select(vec![
        ErrorKind::Security,
        ErrorKind::Io,
        ErrorKind::InvalidState,
        ErrorKind::InvalidValue,
        ErrorKind::NoChannel,
        ErrorKind::NoApplication,
        ErrorKind::Closed,
        ErrorKind::Unsupported,
        ErrorKind::Unknown,
        ErrorKind::NotAllowed,
    ]);
    (kind, ".{0,100}").prop_map(|(kind, message)| TokenError::new(kind, message))
}

fn reply_body() -> impl Strategy<Value = ReplyBody> {
    let session = (any::<u32>(), option::of(vec(any::<u8>(), 0..=15)));
    let channel = (any::<u32>(), option::of(bytes()));
    prop_oneof![
        vec(reader(), 0..17).prop_map(ReplyBody::Readers),
        session.prop_map(|(id, historical_bytes)| {
            ReplyBody::Session(SessionInfo {
                id: SessionId(id),
                historical_bytes,
            })
        }),
        channel.prop_map(|(id, open_response)| {
            ReplyBody::Channel(ChannelInfo {
                id: ChannelId(id),
                open_response,
            })
        }),
        bytes().prop_map(ReplyBody::Response),
        Just(ReplyBody::Done),
        select(vec![
            PermissionState::Granted,
            PermissionState::Denied,
            PermissionState::Prompt,
        ])
        .prop_map(ReplyBody::Permission),
    ]
}

fn message() -> impl Strategy<Value = PortMessage> {
    let result = prop_oneof![reply_body().prop_map(Ok), error().prop_map(Err)];
    prop_oneof![
        (any::<u64>(), result).prop_map(|(id, result)| PortMessage::Reply {
            request: RequestId(id),
            result,
        }),
        reader().prop_map(PortMessage::Element),
    ]
}

/// As [`has_strategy`].
fn message_has_strategy(message: &PortMessage) -> bool {
    match message {
        PortMessage::Element(_) => true,
        PortMessage::Reply { result, .. } => match result {
            Ok(
                ReplyBody::Readers(_)
                | ReplyBody::Session(_)
                | ReplyBody::Channel(_)
                | ReplyBody::Response(_)
                | ReplyBody::Done
                | ReplyBody::Permission(_),
            )
            | Err(_) => true,
        },
    }
}

fn origin() -> impl Strategy<Value = Origin> {
    "(https?|servo-tokens)://[a-z0-9.-]{1,60}(:[0-9]{1,5})?"
        .prop_filter_map("an origin", |text| Origin::new(&text))
}

fn identity() -> impl Strategy<Value = PortIdentity> {
    let connection = select(vec![
        Connection::TrustedHttps,
        Connection::HttpsWithException,
        Connection::Insecure,
    ]);
    (
        origin(),
        origin(),
        (any::<u64>(), any::<u64>()),
        any::<bool>(),
        connection,
        vec(select(Feature::ALL.to_vec()), 0..5),
    )
        .prop_map(
            |(origin, top_level_origin, (webview, event_loop), private, connection, features)| {
                PortIdentity {
                    origin,
                    top_level_origin,
                    webview,
                    event_loop,
                    private,
                    connection,
                    features: features.into_iter().collect(),
                }
            },
        )
}

fn worker_kind() -> impl Strategy<Value = WorkerKind> {
    prop_oneof![
        ".{0,40}".prop_map(|profile| WorkerKind::VirtualCard { profile }),
        Just(WorkerKind::PcscMonitor),
        ".{0,128}".prop_map(|reader| WorkerKind::PcscReader { reader }),
    ]
}

/// Sends a message there, checks that every frame that is a little different is something else or nothing, and that
/// no beginning of it is a message.
fn round_trip<T>(message: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let frame = Frame::encode(message).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(frame.encoded_length() <= MAX_FRAME_LENGTH);
    let arrived = frame.decode::<T>();
    prop_assert_eq!(arrived.as_ref(), Ok(message));

    // The frame's own bytes are private; its form on the wire has them behind their number.
    let form =
        postcard::to_stdvec(&frame).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let bytes = &form[form.len() - frame.encoded_length()..];
    for length in [1, bytes.len() / 2, bytes.len() - 1] {
        let cut_off = Frame::from_bytes(bytes[..length].to_vec());
        let arrived = cut_off.decode::<T>();
        prop_assert_ne!(arrived.as_ref(), Ok(message));
    }
    let longer = Frame::from_bytes([bytes, &[0]].concat());
    prop_assert_eq!(longer.decode::<T>(), Err(WireError::Malformed));
    Ok(())
}

proptest! {
    #[test]
    fn requests(id in any::<u64>(), body in request_body()) {
        prop_assert!(has_strategy(&body));
        round_trip(&PortRequest { id: RequestId(id), body })?;
    }

    #[test]
    fn messages(message in message()) {
        prop_assert!(message_has_strategy(&message));
        round_trip(&message)?;
    }

    #[test]
    fn identities(identity in identity()) {
        round_trip(&identity)?;
    }

    #[test]
    fn worker_kinds(kind in worker_kind()) {
        round_trip(&kind)?;
    }

    #[test]
    fn configurations(
        pcsc in any::<bool>(),
        virtual_card in option::of(".{0,40}"),
        uicc_readers in vec(".{0,40}", 0..3),
        device_rules in option::of(".{0,400}"),
        when_no_rules in option::of(prop_oneof![Just(WhenNoRules::Ask), Just(WhenNoRules::Deny)]),
    ) {
        let access = device_rules.map(|device_rules| AccessConfig { device_rules, when_no_rules });
        round_trip(&BrokerConfig { pcsc, virtual_card, uicc_readers, access })?;
    }
}
