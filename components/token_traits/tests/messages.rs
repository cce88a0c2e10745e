/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Every message that travels in a frame arrives as it was sent.

use std::fmt::Debug;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde::Serialize;
use serde::de::DeserializeOwned;
use token_traits::control::{AccessConfig, BrokerConfig, ModuleConfig, WhenNoRules, WorkerKind};
use token_traits::keys::{
    AlgorithmQuery, Bytes, Cipher, Curve, Hash, KeyAlgorithm, KeyId, KeyInfo, KeyOperation,
    KeyQuery, KeyTokenId, KeysReply, KeysRequest, NewKey, Protection, Provenance, SignatureScheme,
    TokenFeature, TokenInfo, TokenQuery, TokenSelector, Usages, UserVerification, WrapScheme,
};
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

fn algorithm() -> impl Strategy<Value = KeyAlgorithm> {
    prop_oneof![
        any::<u16>().prop_map(|bits| KeyAlgorithm::Rsa { bits }),
        select(vec![Curve::P256, Curve::P384, Curve::P521]).prop_map(KeyAlgorithm::Ec),
        any::<u16>().prop_map(|bits| KeyAlgorithm::Aes { bits }),
        any::<u16>().prop_map(|bits| KeyAlgorithm::Secret { bits }),
    ]
}

fn hash() -> impl Strategy<Value = Hash> {
    select(vec![Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512])
}

fn usages() -> impl Strategy<Value = Usages> {
    vec(select(Usages::ALL.to_vec()), 0..7).prop_map(|usages| {
        let each = usages.into_iter().map(|(_, usage)| usage);
        each.fold(Usages::NONE, Usages::and)
    })
}

fn some_bytes() -> impl Strategy<Value = Bytes> {
    bytes().prop_map(Bytes)
}

fn key_id() -> impl Strategy<Value = KeyId> {
    any::<[u8; 16]>().prop_map(KeyId)
}

fn token_id() -> impl Strategy<Value = KeyTokenId> {
    any::<[u8; 16]>().prop_map(KeyTokenId)
}

fn protection() -> impl Strategy<Value = Protection> {
    select(vec![
        Protection::Software,
        Protection::Isolated,
        Protection::Hardware,
    ])
}

fn user_verification() -> impl Strategy<Value = UserVerification> {
    select(vec![
        UserVerification::None,
        UserVerification::Session,
        UserVerification::EachUse,
    ])
}

fn new_key() -> impl Strategy<Value = NewKey> {
    let name = option::of(".{0,60}");
    let origins = vec(origin(), 0..3);
    let flags = any::<(bool, bool)>();
    (
        algorithm(),
        usages(),
        name,
        origins,
        user_verification(),
        flags,
    )
        .prop_map(
            |(
                algorithm,
                usages,
                name,
                origins,
                user_verification,
                (is_wrappable, is_persistent),
            )| {
                NewKey {
                    algorithm,
                    usages,
                    name,
                    origins,
                    user_verification,
                    is_wrappable,
                    is_persistent,
                }
            },
        )
}

fn cipher() -> impl Strategy<Value = Cipher> {
    prop_oneof![
        (hash(), some_bytes()).prop_map(|(hash, label)| Cipher::RsaOaep { hash, label }),
        any::<[u8; 16]>().prop_map(|iv| Cipher::AesCbc { iv }),
        any::<([u8; 16], u8)>().prop_map(|(counter, bits)| Cipher::AesCtr { counter, bits }),
        (some_bytes(), some_bytes(), any::<u8>()).prop_map(|(iv, additional_data, tag_bits)| {
            Cipher::AesGcm {
                iv,
                additional_data,
                tag_bits,
            }
        }),
    ]
}

fn wrap_scheme() -> impl Strategy<Value = WrapScheme> {
    prop_oneof![
        Just(WrapScheme::AesKw),
        (hash(), some_bytes()).prop_map(|(hash, label)| WrapScheme::RsaOaep { hash, label }),
    ]
}

fn key_operation() -> impl Strategy<Value = KeyOperation> {
    let scheme = prop_oneof![
        hash().prop_map(SignatureScheme::RsaPkcs1),
        (hash(), any::<u16>())
            .prop_map(|(hash, salt_length)| SignatureScheme::RsaPss { hash, salt_length }),
        Just(SignatureScheme::Ecdsa),
        hash().prop_map(SignatureScheme::Hmac),
    ];
    prop_oneof![
        (scheme, some_bytes()).prop_map(|(scheme, data)| KeyOperation::Sign { scheme, data }),
        (hash(), some_bytes(), some_bytes())
            .prop_map(|(hash, data, mac)| KeyOperation::VerifyMac { hash, data, mac }),
        (cipher(), some_bytes()).prop_map(|(cipher, data)| KeyOperation::Encrypt { cipher, data }),
        (cipher(), some_bytes()).prop_map(|(cipher, data)| KeyOperation::Decrypt { cipher, data }),
        (some_bytes(), option::of(new_key()))
            .prop_map(|(public, into)| KeyOperation::Derive { public, into }),
        (wrap_scheme(), key_id()).prop_map(|(scheme, key)| KeyOperation::Wrap { scheme, key }),
        (wrap_scheme(), some_bytes(), new_key())
            .prop_map(|(scheme, data, key)| KeyOperation::Unwrap { scheme, data, key }),
    ]
}

fn token_query() -> impl Strategy<Value = TokenQuery> {
    (
        option::of(".{0,40}"),
        option::of(".{0,40}"),
        option::of(".{0,40}"),
        protection(),
        any::<Option<bool>>(),
    )
        .prop_map(
            |(label, model, reader, minimum_protection, provisionable)| TokenQuery {
                label,
                manufacturer: None,
                model,
                reader,
                minimum_protection,
                provisionable,
            },
        )
}

fn key_query() -> impl Strategy<Value = KeyQuery> {
    let algorithms = vec(
        prop_oneof![
            any::<Option<u16>>().prop_map(|bits| AlgorithmQuery::Rsa { bits }),
            Just(AlgorithmQuery::Ec {
                curve: Some(Curve::P384)
            }),
            any::<Option<u16>>().prop_map(|bits| AlgorithmQuery::Aes { bits }),
            Just(AlgorithmQuery::Secret),
        ],
        0..3,
    );
    let token = option::of(prop_oneof![
        token_id().prop_map(TokenSelector::Is),
        token_query().prop_map(TokenSelector::Like),
    ]);
    let certificate = (
        vec(any::<[u8; 4]>(), 0..30),
        any::<u16>(),
        vec(".{0,30}", 0..3),
        any::<Option<bool>>(),
    );
    (
        option::of(".{0,40}"),
        option::of(some_bytes()),
        algorithms,
        usages(),
        token,
        certificate,
    )
        .prop_map(
            |(
                name,
                public_key,
                algorithms,
                usages,
                token,
                (issuers, certificate_key_usages, extended_key_usages, valid_certificate),
            )| KeyQuery {
                name,
                public_key,
                algorithms,
                usages,
                token,
                issuers,
                certificate_key_usages,
                extended_key_usages,
                valid_certificate,
                ..KeyQuery::default()
            },
        )
}

fn keys_request() -> impl Strategy<Value = KeysRequest> {
    prop_oneof![
        ".{0,60}".prop_map(KeysRequest::GetKeyByName),
        key_query().prop_map(|query| KeysRequest::GetKeys(Box::new(query))),
        key_query().prop_map(|query| KeysRequest::RequestKey(Box::new(query))),
        token_query().prop_map(KeysRequest::GetTokens),
        token_query().prop_map(KeysRequest::RequestToken),
        key_id().prop_map(KeysRequest::ForgetKey),
        token_id().prop_map(KeysRequest::ForgetToken),
        Just(KeysRequest::WatchTokens),
        (token_id(), new_key()).prop_map(|(token, key)| KeysRequest::Generate { token, key }),
        key_id().prop_map(KeysRequest::Delete),
        (key_id(), some_bytes())
            .prop_map(|(key, certificate)| KeysRequest::InstallCertificate { key, certificate }),
        key_id().prop_map(KeysRequest::RemoveCertificate),
        key_id().prop_map(KeysRequest::GetCertificates),
        (key_id(), any::<[u8; 32]>())
            .prop_map(|(key, challenge)| KeysRequest::Attest { key, challenge }),
        (key_id(), key_operation())
            .prop_map(|(key, operation)| KeysRequest::Use { key, operation }),
    ]
}

fn token_info() -> impl Strategy<Value = TokenInfo> {
    let feature = prop_oneof![
        algorithm().prop_map(TokenFeature::Generate),
        hash().prop_map(TokenFeature::Hmac),
        Just(TokenFeature::RsaPkcs1),
        Just(TokenFeature::Attest),
    ];
    (
        token_id(),
        ".{0,64}",
        protection(),
        any::<(bool, bool)>(),
        vec(feature, 0..10),
    )
        .prop_map(
            |(id, label, protection, (present, provisionable), features)| TokenInfo {
                id,
                label,
                protection,
                present,
                provisionable,
                features,
            },
        )
}

fn key_info() -> impl Strategy<Value = KeyInfo> {
    let provenance = select(vec![
        Provenance::Unknown,
        Provenance::Imported,
        Provenance::Generated,
    ]);
    let halves = (option::of(some_bytes()), option::of(some_bytes()));
    let nature = (
        algorithm(),
        usages(),
        protection(),
        user_verification(),
        provenance,
    );
    (
        key_id(),
        token_info(),
        ".{0,60}",
        halves,
        nature,
        any::<(bool, bool)>(),
        vec(origin(), 0..3),
    )
        .prop_map(
            |(
                id,
                token,
                name,
                (identifier, public_key),
                (algorithm, usages, protection, user_verification, provenance),
                (is_wrappable, is_own),
                origins,
            )| KeyInfo {
                id,
                token,
                name,
                identifier,
                algorithm,
                usages,
                public_key,
                protection,
                user_verification,
                provenance,
                is_wrappable,
                is_own,
                origins,
            },
        )
}

fn keys_reply() -> impl Strategy<Value = KeysReply> {
    prop_oneof![
        Just(KeysReply::Done),
        vec(key_info(), 0..3).prop_map(KeysReply::Keys),
        key_info().prop_map(|key| KeysReply::Key(Box::new(key))),
        vec(token_info(), 0..3).prop_map(KeysReply::Tokens),
        token_info().prop_map(KeysReply::Token),
        some_bytes().prop_map(KeysReply::Bytes),
        any::<bool>().prop_map(KeysReply::IsGenuine),
        vec(some_bytes(), 0..3).prop_map(KeysReply::Certificates),
        (".{0,10}", some_bytes(), vec(some_bytes(), 0..3)).prop_map(
            |(format, statement, chain)| KeysReply::Attestation {
                format,
                statement,
                chain,
            }
        ),
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
        keys_request().prop_map(RequestBody::Keys),
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
        // Does not compile with one that has none there.
        RequestBody::Keys(
            KeysRequest::GetKeyByName(_)
            | KeysRequest::GetKeys(_)
            | KeysRequest::RequestKey(_)
            | KeysRequest::GetTokens(_)
            | KeysRequest::RequestToken(_)
            | KeysRequest::ForgetKey(_)
            | KeysRequest::ForgetToken(_)
            | KeysRequest::WatchTokens
            | KeysRequest::Generate { .. }
            | KeysRequest::Delete(_)
            | KeysRequest::InstallCertificate { .. }
            | KeysRequest::RemoveCertificate(_)
            | KeysRequest::GetCertificates(_)
            | KeysRequest::Attest { .. }
            | KeysRequest::Use { .. },
        ) => true,
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
        ErrorKind::NotFound,
        ErrorKind::NotSupported,
        ErrorKind::InvalidAccess,
        ErrorKind::Gone,
        ErrorKind::Operation,
        ErrorKind::Data,
        ErrorKind::ReadOnly,
        ErrorKind::NameTaken,
        ErrorKind::QuotaExceeded,
        ErrorKind::Timeout,
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
        keys_reply().prop_map(ReplyBody::Keys),
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
        token_info().prop_map(PortMessage::Token),
    ]
}

/// As [`has_strategy`].
fn message_has_strategy(message: &PortMessage) -> bool {
    match message {
        PortMessage::Element(_) | PortMessage::Token(_) => true,
        PortMessage::Reply { result, .. } => match result {
            Ok(
                ReplyBody::Readers(_)
                | ReplyBody::Session(_)
                | ReplyBody::Channel(_)
                | ReplyBody::Response(_)
                | ReplyBody::Done
                | ReplyBody::Permission(_)
                | ReplyBody::Keys(_),
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
        module().prop_map(WorkerKind::Module),
        ".{0,40}".prop_map(|tcti| WorkerKind::Tpm { tcti }),
    ]
}

fn module() -> impl Strategy<Value = ModuleConfig> {
    let places = || vec(".{0,40}", 0..3);
    let environment = btree_map(".{0,20}", ".{0,40}", 0..3);
    (
        ".{0,40}",
        ".{0,40}",
        places(),
        places(),
        any::<bool>(),
        environment,
    )
        .prop_map(
            |(module, label, read, write, pcsc, environment)| ModuleConfig {
                module,
                label,
                read,
                write,
                pcsc,
                environment,
            },
        )
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
        modules in vec(module(), 0..3),
        tpm in option::of(".{0,40}"),
        key in option::of(vec(any::<u8>(), 0..40)),
    ) {
        let access = device_rules.map(|device_rules| AccessConfig { device_rules, when_no_rules });
        let piv_management_key = key.map(Bytes);
        round_trip(&BrokerConfig {
            pcsc,
            virtual_card,
            uicc_readers,
            access,
            modules,
            tpm,
            piv_management_key,
        })?;
    }
}
