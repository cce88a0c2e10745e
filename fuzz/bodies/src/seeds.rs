/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Meaningful inputs, from which fuzzing starts. They are kept in `fuzz/seeds`, where
//! `cargo run -p fuzz_bodies --example write-seeds` puts them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use secure_element::piv::Algorithm;
use secure_element::piv::data::{Chuid, with_certificate};
use secure_element::piv::key::PublicKey;
use secure_element::tlv::{self, Tag};
use serde::Serialize;
use token_traits::control::{BrokerConfig, FromBroker, WorkerId, WorkerKind};
use token_traits::port::{
    ChannelId, ChannelInfo, ChannelType, Command, ElementType, PortMessage, PortRequest, ReaderId,
    ReaderInfo, ReplyBody, RequestBody, RequestId, SessionId, SessionInfo,
};
use token_traits::prompt::{
    AuditEntry, GrantId, GrantInfo, GrantKind, Overview, PromptAnswer, PromptId, PromptReader,
    PromptRequest, Question,
};
use token_traits::{
    Connection, ErrorKind, FeatureSet, Frame, Origin, PortId, PortIdentity, TokenError,
};
use token_workers::protocol::{
    self, Connected, Protocol, ReaderStatus, WorkerError, WorkerMessage, WorkerRequest,
};
use virtual_card::Profile;
use virtual_card::applets::{ara_m, conformance, echo, exclusive, issuer, origin, pin};

use crate::access::Kind;
use crate::keys::{Ask, Step};
use crate::piv::{ANSWERS, OBJECT};
use crate::port_to_broker::{Answer, Operation, Request};
use crate::virtual_card::WITHOUT_ECHO;
use crate::vpcd::{LONG_ANSWER, REMOVAL};

/// The inputs of one target, each with its name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Where the seeds of a target are kept.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../seeds")
        .join(target)
}

/// The seeds of a target.
pub fn of(target: &str) -> Seeds {
    match target {
        "access" => access_rules(),
        "apdu" => commands(),
        "atr" => answers_to_reset(),
        "broker_to_document" => messages(),
        "exchange" => exchanges(),
        "fci" => answers_to_select().into(),
        "keys" => key_scripts(),
        "permissions_policy" => policies(),
        "piv" => piv_cards(),
        "port_to_broker" => scripts(),
        "response" => responses(),
        "tlv" => data_objects(),
        "transport" => packets(),
        "virtual_card" => card_sessions(),
        "vpcd" => driver_sessions(),
        _ => Vec::new(),
    }
}

fn policies() -> Seeds {
    let seed = |header: &str, attribute: &str| {
        let length = u8::try_from(header.len()).unwrap_or(u8::MAX);
        [&[length][..], header.as_bytes(), attribute.as_bytes()].concat()
    };
    vec![
        (
            "none",
            seed("secure-element=(), payment=*", "secure-element; payment *"),
        ),
        (
            "lists",
            seed(
                r#"secure-element=(self "https://shop.example"), token-keys=self;a=1;b"#,
                "secure-element 'self' https://shop.example; token-keys 'src'; payment 'none'",
            ),
        ),
        (
            "twice",
            seed(
                r#"payment=?1, payment=(self), camera=(1 2.5 :AAAA: "a\"b")"#,
                "secure-element *; secure-element https://nobody.invalid",
            ),
        ),
        (
            "malformed",
            seed("secure-element=(self", "publickey-credentials-get"),
        ),
    ]
}

/// Scripts for [`crate::keys`].
fn key_scripts() -> Seeds {
    const MODULE: u8 = 1;
    const TPM: u8 = 2;
    let script = |options: u8, steps: &[&[u8]]| [&[options][..], &steps.concat()].concat();
    let settle = &[Step::Settle as u8][..];
    let open = |slot: u8| [Step::OpenPort as u8, slot];
    let ask = |slot: u8, ask: Ask, arguments: &[u8]| {
        [&[Step::Request as u8, slot, ask as u8], arguments].concat()
    };
    let deadline = &[Step::Deadline as u8][..];
    let token = |slot| ask(slot, Ask::RequestToken, &[]);
    // On P-256, to sign, "key", which stays.
    let make = |slot| ask(slot, Ask::Generate, &[0, 0, 1, 1, 8]);
    let found = |slot| ask(slot, Ask::GetKeyByName, &[1]);
    let sign = |slot, key| ask(slot, Ask::Use, &[key, 0, 32]);
    let honest = [Step::Answer as u8, 0, 0, crate::keys::Answer::Honest as u8];
    vec![
        (
            "made-and-used",
            script(
                MODULE,
                &[
                    &open(0),
                    &token(0),
                    settle,
                    &make(0),
                    settle,
                    deadline,
                    &found(0),
                    settle,
                    deadline,
                    &sign(0, 0),
                    settle,
                    &ask(0, Ask::Delete, &[0]),
                    settle,
                ],
            ),
        ),
        (
            "a-tpm-s",
            script(
                TPM,
                &[
                    &open(0),
                    &token(0),
                    settle,
                    &make(0),
                    settle,
                    &sign(0, 0),
                    settle,
                    &ask(0, Ask::Attest, &[0]),
                    settle,
                    &open(2),
                    &sign(2, 0),
                    settle,
                    deadline,
                ],
            ),
        ),
        (
            "chosen",
            script(
                MODULE | TPM,
                &[
                    &open(0),
                    &ask(0, Ask::Watch, &[]),
                    &ask(0, Ask::RequestKey, &[9, 0, 0]),
                    settle,
                    &sign(0, 0),
                    settle,
                    &[Step::TokensChanged as u8, 0, 0],
                    settle,
                    &sign(0, 0),
                    settle,
                    &[Step::Revoke as u8, 0],
                    &sign(0, 0),
                    settle,
                ],
            ),
        ),
        (
            "wrong-pin",
            script(
                MODULE,
                &[
                    &open(0),
                    &[Step::SetPermission as u8, 0, 1],
                    &token(0),
                    settle,
                    &make(0),
                    &honest,
                    &honest,
                    &honest,
                    &[Step::AnswerPrompt as u8, 0, 5, 0, 0],
                    &honest,
                    &honest,
                    &[Step::AnswerPrompt as u8, 0, 0, 0, 0],
                    settle,
                ],
            ),
        ),
        (
            "the-worker-ends",
            script(
                MODULE,
                &[
                    &open(0),
                    &token(0),
                    settle,
                    &make(0),
                    settle,
                    &sign(0, 0),
                    &sign(0, 0),
                    &[Step::WorkerEnded as u8, 0],
                    settle,
                    &sign(0, 0),
                    settle,
                    deadline,
                ],
            ),
        ),
        (
            "dishonest",
            script(
                MODULE,
                &[
                    &open(0),
                    &token(0),
                    &[Step::Activation as u8, 1],
                    &[Step::WorkerStarted as u8, 0],
                    &[
                        Step::Answer as u8,
                        0,
                        0,
                        crate::keys::Answer::Anything as u8,
                        1,
                        2,
                        b'x',
                        b'y',
                    ],
                    &[Step::AnswerPrompt as u8, 0, 3, 0, 1],
                    &ask(0, Ask::GetKeys, &[9, 0, 0]),
                    &[
                        Step::Answer as u8,
                        0,
                        0,
                        crate::keys::Answer::Anything as u8,
                        2,
                        3,
                        1,
                        2,
                        3,
                    ],
                    settle,
                    &[
                        Step::Answer as u8,
                        0,
                        0,
                        crate::keys::Answer::Error as u8,
                        1,
                    ],
                    deadline,
                    deadline,
                ],
            ),
        ),
        (
            "wrapped",
            script(
                MODULE,
                &[
                    &open(0),
                    &token(0),
                    settle,
                    &ask(0, Ask::Generate, &[0, 2, 0x60, 1, 8]),
                    settle,
                    &ask(0, Ask::Generate, &[0, 2, 0x0C, 2, 12]),
                    settle,
                    deadline,
                    &ask(0, Ask::Wrap, &[0, 1]),
                    settle,
                    &ask(0, Ask::Unwrap, &[0, 2, 0x0C, 3, 8]),
                    settle,
                ],
            ),
        ),
    ]
}

fn piv_cards() -> Seeds {
    let key = PublicKey::Ec {
        algorithm: Algorithm::P256,
        point: [&[4][..], &[7; 64]].concat(),
    };
    let template = object(&[(0x7F49, &key.to_objects())]);
    let rsa = PublicKey::Rsa {
        modulus: vec![0xC1; 256],
        exponent: vec![1, 0, 1],
    };
    let name = object(&[(0x30, &[])]);
    let signed = [
        object(&[(0xA0, &[2, 1, 2]), (0x02, &[5])]),
        name.repeat(4),
        rsa.to_spki(),
    ]
    .concat();
    let certificate = object(&[(0x30, &object(&[(0x30, &signed)]))]);
    let stored = object(&[(0x53, &with_certificate(&certificate))]);
    let chuid = Chuid::self_issued(&[7; 16], b"20990101");
    let discovery: &[u8] = &[
        0x7E, 0x12, 0x4F, 0x0B, 0xA0, 0, 0, 3, 8, 0, 0, 0x10, 0, 1, 0, 0x5F, 0x2F, 0x02, 0x60, 0x20,
    ];
    let properties = object(&[(
        0x61,
        &object(&[
            (0x4F, &[0, 0, 0x10, 0, 1, 0]),
            (0x50, b"PIV"),
            (
                0xAC,
                &object(&[(0x80, &[0x11]), (0x80, &[0x0A]), (0x06, &[0])]),
            ),
        ]),
    )]);
    let metadata = object(&[
        (0x01, &[0x11]),
        (0x02, &[2, 1]),
        (0x03, &[1]),
        (0x04, &key.to_objects()),
    ]);
    let signature = object(&[(0x30, &[2, 1, 5, 2, 1, 6])]);
    let answer = |data: &[u8], status: [u8; 2]| {
        let length = (data.len() + 2) as u16;
        [&length.to_be_bytes(), data, &status].concat()
    };
    let ok = |data: &[u8]| answer(data, [0x90, 0]);
    let whole = [
        ok(&properties),
        ok(discovery),
        ok(&object(&[(0x53, &chuid)])),
        ok(&[0, 0, 1, 2]),
        ok(&[5, 7, 1]),
        answer(&[], [0x63, 0xC3]),
        ok(&[]),
        ok(&[0x01, 1, 0x0A]),
        ok(&object(&[(0x7C, &object(&[(0x80, &[9; 16])]))])),
        ok(&object(&[(0x7C, &object(&[(0x82, &[9; 16])]))])),
    ]
    .concat();
    let (first, last) = stored.split_at(200);
    let slots = [
        answer(first, [0x61, (last.len() & 0xFF) as u8]),
        ok(last),
        ok(&metadata),
        answer(&[], [0x6A, 0x82]),
        answer(&[], [0x6D, 0]),
    ]
    .concat();
    let of = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    vec![
        ("answers", of(ANSWERS, &[whole.clone(), slots].concat())),
        ("certificate", of(OBJECT, &with_certificate(&certificate))),
        ("chuid", of(OBJECT, &chuid)),
        ("discovery", of(OBJECT, &discovery[2..])),
        ("generated", of(OBJECT, &template)),
        ("management", of(ANSWERS, &whole)),
        ("metadata", of(OBJECT, &metadata)),
        ("properties", of(OBJECT, &properties)),
        ("signature", of(OBJECT, &signature)),
        ("spki", of(OBJECT, &rsa.to_spki())),
    ]
}

const SELECT: [u8; 5] = [0x00, 0xA4, 0x04, 0x00, 0x08];

fn select_echo() -> Vec<u8> {
    [&SELECT[..], &echo::AID, &[0x00]].concat()
}

fn access_rules() -> Seeds {
    let hash = [0x11; 20];
    let filters = [
        0x00, 0xB0, 0, 0, 0xFF, 0xFF, 0, 0, 0x80, 0xCA, 0, 0, 0xFF, 0xFF, 0, 0,
    ];
    let sha256 = [0x22; 32];
    let rule = |reference: &[(u32, &[u8])], access: &[(u32, &[u8])]| {
        let parts = [(0xE1, object(reference)), (0xE3, object(access))];
        let parts = parts.each_ref().map(|(tag, value)| (*tag, &value[..]));
        object(&[(0xE2, &object(&parts)[..])])
    };
    let aid = &echo::AID[..];
    let rules = [
        rule(&[(0x4F, aid), (0xC1, &hash)], &[(0xD0, &[1]), (0xD1, &[0])]),
        rule(&[(0x4F, aid), (0xC1, &sha256)], &[(0xD0, &filters)]),
        rule(&[(0x4F, &aid[..5]), (0xC1, &[])], &[(0xD0, &[0])]),
        rule(&[(0xC0, &[]), (0xC1, &[])], &[(0xD1, &[1])]),
        rule(
            &[(0x4F, &[]), (0xC1, &[])],
            &[(0xD0, &[1]), (0xDB, &[0; 8])],
        ),
        rule(&[(0xC1, &hash), (0xCA, b"a.b")], &[(0xD0, &[1])]),
        rule(&[(0x4F, &[]), (0xC1, &[])], &[(0xDF7F, &[1])]),
    ]
    .concat();
    let all = object(&[(0xFF40, &rules)]);
    let refresh_tag = object(&[(0xDF20, &[1; 8])]);
    let (first, next) = all.split_at(200);
    let script = |kind: Kind, answers: &[(&[u8], [u8; 2])]| {
        let mut input = vec![kind as u8];
        for (data, status) in answers {
            input.push(data.len() as u8 + 2);
            input.extend(*data);
            input.extend(status);
        }
        input
    };
    let ok = [0x90, 0x00];
    let fcp = [0x62, 0x00];
    let path = |file: [u8; 2]| object(&[(0x30, &object(&[(0x04, &file)])[..])]);
    let odf = object(&[(0xA7, &path([0x52, 0x07])[..])]);
    let oid = [0x2A, 0x86, 0x48, 0x86, 0xFC, 0x6B, 0x81, 0x48, 0x01, 0x01];
    let oid = [object(&[(0x06, &oid)]), path([0x42, 0x00])].concat();
    let oid = object(&[(0x30, &oid[..])]);
    let dodf = object(&[(0xA1, &object(&[(0x30, &[]), (0x30, &[]), (0xA1, &oid)])[..])]);
    let main = [object(&[(0x04, &[1; 8])]), path([0x43, 0x00])].concat();
    let main = object(&[(0x30, &main[..])]);
    let target = object(&[(0xA0, &object(&[(0x04, aid)])[..])]);
    let acrules = object(&[(0x30, &[target, path([0x43, 0x10])].concat()[..])]);
    let filter = object(&[(0x04, &filters[..8])]);
    let apdu = object(&[(0xA0, &object(&[(0xA1, &filter)])[..])]);
    let condition = [object(&[(0x04, &hash)]), object(&[(0xA0, &apdu)])].concat();
    let conditions = object(&[(0x30, &condition[..]), (0x30, &[])]);
    let end = [0x62, 0x82];
    let selected = (&fcp[..], ok);
    let device = "[[rule]]\norigin = \"https://bank.example\"\naid = \"A00000000401\"\nelement = \"sd\"\n\
        apdu = [{ header = \"00B00000\", mask = \"FFFF0000\" }]\n\
        [[rule]]\norigin = \"*\"\naid = \"default\"\napdu = \"never\"\n";
    vec![
        ("body", [&[Kind::Body as u8][..], &rules].concat()),
        (
            "ara-m",
            script(Kind::AraM, &[(&refresh_tag, ok), (first, ok), (next, ok)]),
        ),
        (
            "ara-m-changes",
            script(
                Kind::AraM,
                &[
                    (&refresh_tag, ok),
                    (first, ok),
                    (&[], [0x69, 0x84]),
                    (&refresh_tag, ok),
                    (&[], [0x6A, 0x88]),
                ],
            ),
        ),
        (
            "arf",
            script(
                Kind::Arf,
                &[
                    selected,
                    selected,
                    (&odf, end),
                    selected,
                    (&dodf, end),
                    selected,
                    (&main, end),
                    selected,
                    (&acrules, end),
                    selected,
                    (&conditions, end),
                ],
            ),
        ),
        (
            "device",
            [&[Kind::Device as u8][..], device.as_bytes()].concat(),
        ),
    ]
}

/// Encoded data objects.
fn object(objects: &[(u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, value) in objects {
        tlv::write(&mut bytes, Tag(*tag), value);
    }
    bytes
}

fn commands() -> Seeds {
    let data = [7; 300];
    vec![
        ("case-1", vec![0x00, 0x10, 0x01, 0x02]),
        ("case-2-short", vec![0x80, 0xCA, 0x9F, 0x7F, 0x00]),
        ("case-2-extended", vec![0x00, 0x14, 0, 0, 0, 0x01, 0x2C]),
        ("case-3-short", vec![0x00, 0x20, 0x00, 0x80, 2, 1, 2]),
        (
            "case-3-extended",
            [&[0x10, 0xDB, 0x3F, 0xFF, 0, 1, 44][..], &data].concat(),
        ),
        ("case-4-short", select_echo()),
        (
            "case-4-extended",
            [&[0x00, 0x10, 0, 0, 0, 1, 44][..], &data, &[0, 0]].concat(),
        ),
        ("open-channel", vec![0x00, 0x70, 0x00, 0x00, 0x01]),
        ("close-channel-19", vec![0x4F, 0x70, 0x80, 0x13]),
        ("secure-messaging", vec![0x0C, 0xB0, 0, 0, 0x10]),
        ("globalplatform", vec![0x84, 0x82, 0, 0, 2, 1, 2]),
        ("proprietary-channel-4", vec![0xE0, 0x10, 0, 0]),
    ]
}

fn responses() -> Seeds {
    vec![
        ("success", vec![0x90, 0x00]),
        ("data", vec![1, 2, 3, 0x90, 0x00]),
        ("channel-1", vec![0x01, 0x90, 0x00]),
        ("channel-20", vec![0x14, 0x90, 0x00]),
        ("warning", vec![0x6F, 0x00, 0x62, 0x83]),
        ("not-found", vec![0x6A, 0x82]),
        ("no-channel", vec![0x68, 0x81]),
        ("more-data", vec![0x61, 0x10]),
        ("wrong-le", vec![0x6C, 0x10]),
        ("cut-off", vec![0x90]),
    ]
}

fn data_objects() -> Seeds {
    let mut nested = vec![0x84, 0x01, 0x05];
    for _ in 0..20 {
        nested = [&[0x6F, nested.len() as u8][..], &nested].concat();
    }
    let [isd, ..] = answers_to_select().map(|(_, bytes)| bytes);
    vec![
        ("fci", isd),
        ("nested", nested),
        ("two-byte-tag", vec![0x9F, 0x7F, 0x02, 1, 2]),
        ("three-byte-tag", vec![0x7F, 0x81, 0x02, 0x02, 0x04, 0x00]),
        ("long-length", [&[0x53, 0x81, 0x80][..], &[7; 128]].concat()),
        ("longer-than-needed", vec![0x53, 0x83, 0, 0, 1, 9]),
        ("indefinite", vec![0x6F, 0x80, 0x84, 0x00, 0, 0]),
        ("cut-off", vec![0x6F, 0x05, 0x84, 0x08]),
    ]
}

fn answers_to_select() -> [(&'static str, Vec<u8>); 5] {
    let name = |template: u8| [&[template, 10, 0x84, 8][..], &echo::AID].concat();
    let end = [0xA5, 0x04, 0x9F, 0x65, 0x01, 0xFF];
    [
        (
            "issuer-security-domain",
            [&[0x6F, 16, 0x84, 8][..], &issuer::AID, &end].concat(),
        ),
        ("fcp", name(0x62)),
        ("other-template", name(0x61)),
        ("two-names", vec![0x6F, 6, 0x84, 1, 7, 0x84, 1, 8]),
        ("aid", echo::AID.to_vec()),
    ]
}

fn answers_to_reset() -> Seeds {
    let neo = b"\x3B\xFC\x13\x00\x00\x81\x31\xFE\x15YubikeyNEOr3\xE1";
    vec![
        ("t0", vec![0x3B, 0x04, 1, 2, 3, 4]),
        ("contactless", vec![0x3B, 0x81, 0x80, 0x01, 0x55, 0x55]),
        ("t1", neo.to_vec()),
        ("inverse", vec![0x3F, 0x80, 0x1F, 0x55, 0xCA]),
        ("endless", [&[0x3B][..], &[0x80; 32]].concat()),
    ]
}

/// Options, command and answers as `exchange` takes them.
fn exchange(options: u8, command: &[u8], answers: &[&[u8]]) -> Vec<u8> {
    let mut input = vec![options];
    input.extend((command.len() as u16).to_be_bytes());
    input.extend(command);
    for answer in answers {
        input.push(answer.len() as u8);
        input.extend(*answer);
    }
    input
}

fn exchanges() -> Seeds {
    const T0: u8 = 0;
    const T1: u8 = 1;
    const T0_SELECT: u8 = 2;
    let get = [0x00, 0xCA, 0x00, 0x00, 0x00];
    let long = [&[0x41, 0x10, 0, 0, 0, 1, 44][..], &[7; 300], &[0, 0]].concat();
    let part = [&[3; 200][..], &[0x61, 0x00]].concat();
    vec![
        ("t0-get-response", {
            exchange(T0, &get, &[&[0x61, 2], &[1, 2, 0x90, 0]])
        }),
        ("t0-wrong-le", {
            exchange(T0, &get, &[&[0x6C, 2], &[1, 2, 0x90, 0]])
        }),
        ("t0-warning-of-select", {
            let fci = [0x6F, 0x00, 0x90, 0x00];
            exchange(T0_SELECT, &select_echo(), &[&[0x62, 0x83], &fci])
        }),
        ("t0-envelopes", {
            exchange(T0, &long, &[&[0x90, 0], &[0x61, 1], &[5, 0x90, 0]])
        }),
        ("t0-parts", exchange(T0, &get, &[&part, &part, &[0x90, 0]])),
        ("t0-error-behind-data", {
            exchange(T0, &get, &[&part, &[0x6F, 0]])
        }),
        ("t0-endless", exchange(T0, &get, &[&[0x61, 1]])),
        ("t1-extended", exchange(T1, &long, &[&[1, 2, 0x90, 0]])),
        ("t1-no-answer", exchange(T1, &get, &[&[]])),
    ]
}

/// Options, which name a profile, and commands as `virtual_card` takes them.
fn card_session(profile: &str, options: u8, commands: &[&[u8]]) -> Vec<u8> {
    let index = Profile::NAMED.iter().position(|(name, _)| *name == profile);
    let index = index.unwrap_or_else(|| panic!("there is no profile {profile}"));
    let mut input = vec![options | index as u8];
    for command in commands {
        input.push(command.len() as u8);
        input.extend(*command);
    }
    input
}

fn select(aid: &[u8]) -> Vec<u8> {
    [&[0x00, 0xA4, 0x04, 0x00, aid.len() as u8][..], aid, &[0]].concat()
}

fn card_sessions() -> Seeds {
    let t0 = |commands: &[&[u8]]| card_session("t0", 0, commands);
    let t1 = |commands: &[&[u8]]| card_session("default", 0, commands);
    let echo = [0x00, echo::INS_ECHO, 0, 0, 3, 1, 2, 3, 0];
    let pattern = [0x00, echo::INS_PATTERN, 0x01, 0x40, 0];
    let status = [0x80, echo::INS_STATUS, 0x63, 0x10, 1, 9, 0];
    let open = [0x00, 0x70, 0x00, 0x00, 0x01];
    let on_channel_1 = [&[0x01][..], &select_echo()[1..]].concat();
    let count = [0x01, echo::INS_COUNT, 0, 0, 4];
    let next = [&[0x00, 0xA4, 0x04, 0x02, 0x07][..], &echo::AID[..7], &[0]].concat();
    let get = [0x80, 0xCA, 0x9F, 0x7F, 0];
    let close = [0x01, 0x70, 0x80, 0x01];
    let extended = [0x00, echo::INS_ECHO, 0, 0, 0, 0, 2, 1, 2, 0, 0];
    let envelope = [&[0x00, 0xC2, 0, 0, 11][..], &extended].concat();
    let chained = [0x10, echo::INS_ECHO, 0, 0, 2, 1, 2];
    let verify = [&[0x00, pin::INS_VERIFY, 0x00, 0x80, 4][..], &pin::PIN].concat();
    let secret = [0x00, pin::INS_SECRET, 0, 0, 0];
    let present = b"\x00\x40\x00\x00\x14https://bank.example";
    let slots = [0x00, origin::INS_MY_SLOTS, 0, 0, 0];
    let warning = [0x00, 0xF3, 0x01, 0x08, 0];
    let segmented = [0x00, 0xC4, 0x08, 0x00, 1, 1, 0];
    let rules = [0x80, 0xCA, 0xFF, 0x40, 0];
    vec![
        ("t0-echo", t0(&[&echo, &status])),
        ("t0-parts", t0(&[&pattern, &[0, 0xC0, 0, 0, 0]])),
        ("t0-envelope", t0(&[&envelope])),
        ("t0-conformance", {
            t0(&[&select(&conformance::AID), &warning, &segmented])
        }),
        ("t0-long-answer", {
            t0(&[&select(&conformance::LONG_RESPONSE_AID)])
        }),
        ("echo", t1(&[&echo, &extended, &status])),
        ("chain", t1(&[&chained, &echo])),
        ("channels", t1(&[&open, &on_channel_1, &count, &close])),
        ("next-occurrence", t1(&[&next, &next, &next])),
        ("exclusive", {
            t1(&[&select(&exclusive::AID), &open, &on_channel_1])
        }),
        ("pin", t1(&[&select(&pin::AID), &verify, &secret])),
        ("origin", t1(&[&select(&origin::AID), present, &slots])),
        ("issuer", card_session("default", WITHOUT_ECHO, &[&get])),
        ("access-rules", {
            card_session("ara-m", 0, &[&select(&ara_m::AID), &rules])
        }),
        ("basic-channel-only", {
            card_session("basic-channel-only", 0, &[&open, &echo])
        }),
    ]
}

fn driver_sessions() -> Seeds {
    let session = |messages: &[&[u8]]| {
        let mut input = Vec::new();
        for message in messages {
            input.extend((message.len() as u16).to_be_bytes());
            input.extend(*message);
        }
        input
    };
    let select = select_echo();
    vec![
        ("atr", session(&[&[0x01], &[0x04]])),
        ("commands", session(&[&[0x01], &[0x04], &select, &select])),
        ("reset", session(&[&[0x01], &select, &[0x02], &[0x00]])),
        ("removal", {
            session(&[&[0x01], &[REMOVAL, 0, 0, 0], &[0x04]])
        }),
        ("long-answer", session(&[&[LONG_ANSWER, 0x10, 0x00, 0]])),
        ("too-long-answer", session(&[&[LONG_ANSWER, 0x80, 0x00, 0]])),
        ("unknown-control", session(&[&[0x04], &[0x03], &[0x04]])),
        ("empty", session(&[&[], &[0x04]])),
        ("cut-off", vec![0x00, 0x05, 0x00, 0xA4]),
    ]
}

/// How `transport` takes a packet whose header is true.
const TRUE_HEADER: u8 = 3;

fn packets() -> Seeds {
    let frame = encoded(&Frame::from_bytes(vec![1, 2, 3]));
    let packet = |options: u8, payload: &[u8]| [&[options][..], payload].concat();
    vec![
        ("frame", packet(TRUE_HEADER, &frame)),
        ("empty-frame", packet(TRUE_HEADER, &[0])),
        ("longer-than-it-says", {
            packet(TRUE_HEADER, &[&frame[..], &[0]].concat())
        }),
        ("shorter-than-it-says", packet(TRUE_HEADER, &[0x7F, 0])),
        ("wrong-total", {
            packet(1, &[&u64::MAX.to_ne_bytes()[..], &frame].concat())
        }),
        ("no-header", packet(0, &frame)),
        ("empty", packet(0, &[])),
    ]
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).unwrap_or_else(|error| panic!("a message has a form: {error}"))
}

fn messages() -> Seeds {
    let reader = ReaderInfo {
        id: ReaderId(0),
        name: "Reader".into(),
        element_type: ElementType::SmartCard,
        removable: true,
        present: true,
    };
    let reply = |result| {
        encoded(&PortMessage::Reply {
            request: RequestId(300),
            result,
        })
    };
    let request = |body| {
        encoded(&PortRequest {
            id: RequestId(1),
            body,
        })
    };
    let worker_request = |body| encoded(&WorkerRequest { id: 7, body });
    let worker_reply = |result| encoded(&WorkerMessage::Reply { request: 7, result });
    let origin = |text| Origin::new(text).unwrap_or_else(|| panic!("{text} is an origin"));
    let prompt_reader = || PromptReader {
        name: "Reader".into(),
        element_type: ElementType::SmartCard,
        present: true,
    };
    let prompt = |question| {
        encoded(&PromptRequest {
            id: PromptId(2),
            replaces: Some(PromptId(1)),
            webview: 1,
            origin: origin("https://bank.example"),
            top_level_origin: origin("https://shop.example"),
            question,
        })
    };
    vec![
        ("readers", {
            reply(Ok(ReplyBody::Readers(vec![reader.clone(); 2])))
        }),
        ("session", {
            reply(Ok(ReplyBody::Session(SessionInfo {
                id: SessionId(1),
                historical_bytes: Some(vec![1, 2, 3]),
            })))
        }),
        ("channel", {
            reply(Ok(ReplyBody::Channel(ChannelInfo {
                id: ChannelId(1),
                open_response: Some(vec![0x90, 0]),
            })))
        }),
        ("response", reply(Ok(ReplyBody::Response(vec![0x90, 0])))),
        ("error", {
            reply(Err(TokenError::new(ErrorKind::Closed, "closed")))
        }),
        ("element", encoded(&PortMessage::Element(reader))),
        ("get-readers", request(RequestBody::GetReaders)),
        ("open-channel", {
            request(RequestBody::OpenChannel {
                session: SessionId(1),
                channel_type: ChannelType::Supplementary,
                aid: Some(echo::AID.to_vec()),
                p2: 0x0C,
            })
        }),
        ("transmit", {
            request(RequestBody::Transmit {
                channel: ChannelId(1),
                command: Command::Raw(vec![0x00, 0x10, 0, 0]),
                timeout_ms: Some(1000),
            })
        }),
        ("transmit-fields", {
            request(RequestBody::Transmit {
                channel: ChannelId(1),
                command: Command::Fields {
                    header: [0x00, 0x10, 0, 0],
                    data: Some(vec![1, 2]),
                    le: Some(0),
                    extended: true,
                },
                timeout_ms: None,
            })
        }),
        ("worker-connect", {
            worker_request(protocol::RequestBody::Connect { reset: true })
        }),
        ("worker-transmit", {
            worker_request(protocol::RequestBody::Transmit {
                command: vec![0x00, 0x10, 0, 0],
                select: false,
                timeout_ms: 30_000,
            })
        }),
        ("worker-connected", {
            worker_reply(Ok(protocol::ReplyBody::Connected(Connected {
                atr: vec![0x3B, 0x00],
                protocol: Protocol::T1,
                fresh: true,
            })))
        }),
        ("worker-response", {
            worker_reply(Ok(protocol::ReplyBody::Response(vec![0x90, 0])))
        }),
        ("worker-error", worker_reply(Err(WorkerError::NoService))),
        ("monitor", {
            encoded(&WorkerMessage::Readers(vec![ReaderStatus {
                name: "Reader".into(),
                present: true,
                card_events: 1,
            }]))
        }),
        ("card-present", encoded(&WorkerMessage::CardPresent(true))),
        ("worker-kind", {
            encoded(&WorkerKind::PcscReader {
                reader: "Reader".into(),
            })
        }),
        ("configuration", {
            encoded(&BrokerConfig {
                pcsc: true,
                virtual_card: Some("default".into()),
                ..BrokerConfig::default()
            })
        }),
        ("identity", {
            encoded(&PortIdentity {
                origin: origin("https://bank.example:8443"),
                top_level_origin: origin("https://shop.example"),
                webview: 1,
                event_loop: 1,
                private: false,
                connection: Connection::TrustedHttps,
                features: FeatureSet::ALL,
            })
        }),
        ("start-worker", {
            encoded(&FromBroker::StartWorker {
                worker: WorkerId(1),
                kind: WorkerKind::PcscMonitor,
            })
        }),
        ("prompt-for-a-reader", {
            prompt(Question::ChooseReader {
                readers: vec![prompt_reader(), prompt_reader()],
            })
        }),
        ("prompt-for-an-applet", {
            prompt(Question::UseApplet {
                reader: "Reader".into(),
                applet: Some(echo::AID.to_vec()),
            })
        }),
        ("prompt-for-a-pin", {
            prompt(Question::EnterPin {
                token: "Token".into(),
                was_wrong: false,
                tries_left: Some(3),
                min_length: 4,
                max_length: 8,
            })
        }),
        ("prompt-answer", {
            encoded(&PromptAnswer::Chosen {
                index: 1,
                remember: true,
            })
        }),
        ("overview", {
            encoded(&Overview {
                readers: vec![prompt_reader()],
                grants: vec![GrantInfo {
                    id: Some(GrantId(1)),
                    origin: Some(origin("https://bank.example")),
                    top_level_origin: None,
                    what: GrantKind::Applet {
                        applet: Some(echo::AID.to_vec()),
                        allowed: true,
                    },
                    remembered: true,
                    created: Some(SystemTime::UNIX_EPOCH),
                    last_used: None,
                }],
                audit: vec![AuditEntry {
                    time: SystemTime::UNIX_EPOCH,
                    origin: origin("https://bank.example"),
                    reader: "Reader".into(),
                    applet: Some(echo::AID.to_vec()),
                    decision: "channel opened".into(),
                }],
                problem: None,
            })
        }),
        ("port-opened", encoded(&FromBroker::PortOpened(PortId(1)))),
    ]
}

/// A script of `port_to_broker`.
struct Script(Vec<u8>);

impl Script {
    const PCSC: u8 = 1;
    const EMBEDDED: u8 = 2;
    const RULES: u8 = 4;

    fn new(readers: u8) -> Self {
        Self(vec![readers])
    }

    fn then(mut self, operation: Operation, arguments: &[u8]) -> Self {
        self.0.push(operation as u8);
        self.0.extend(arguments);
        self
    }

    /// A request of the document in a slot, under an id of its own.
    fn request(self, slot: u8, request: Request, arguments: &[u8]) -> Self {
        let arguments = [&[slot, 1, request as u8][..], arguments].concat();
        self.then(Operation::Request, &arguments)
    }

    fn open_port(self, slot: u8) -> Self {
        self.then(Operation::OpenPort, &[slot])
    }

    fn settle(self) -> Self {
        self.then(Operation::Settle, &[])
    }

    /// A document with a channel to the echo applet on the first reader.
    fn with_channel(self, slot: u8) -> Self {
        let aid = [&[1, 1, 0x00, 8][..], &echo::AID].concat();
        self.open_port(slot)
            .request(slot, Request::GetReaders, &[])
            .request(slot, Request::OpenSession, &[0])
            .settle()
            .request(slot, Request::OpenChannel, &aid)
            .settle()
    }

    fn done(self) -> Vec<u8> {
        self.0
    }
}

fn scripts() -> Seeds {
    let embedded = || Script::new(Script::EMBEDDED);
    let pcsc = || {
        Script::new(Script::PCSC)
            .open_port(0)
            .request(0, Request::WatchElements, &[])
            .request(0, Request::GetReaders, &[])
            .then(Operation::WorkerStarted, &[0])
            .then(Operation::Readers, &[2, 0, 1, 1, 1, 0, 0])
    };
    let echo = [1, 10, 7, 0x00, echo::INS_ECHO, 0, 0, 2, 1, 2];
    vec![
        ("transmit", {
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .settle()
                .request(0, Request::CloseChannel, &[1])
                .settle()
                .done()
        }),
        ("transmit-fields", {
            let fields = [1, 0, 0x00, 0x10, 0, 0, 1, 0, 0, 1, 2, 1, 2];
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitFields, &fields)
                .settle()
                .done()
        }),
        ("forbidden", {
            let manage_channel = [1, 0, 4, 0x80, 0x70, 0x80, 0x01];
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &manage_channel)
                .done()
        }),
        ("without-a-grant", {
            embedded()
                .open_port(2)
                .request(2, Request::GetReaders, &[])
                .request(2, Request::WatchElements, &[])
                .request(2, Request::OpenSession, &[0])
                .then(Operation::SetGrant, &[2, 1])
                .request(2, Request::GetReaders, &[])
                .settle()
                .done()
        }),
        ("the-user-chooses", {
            let aid = [&[1, 1, 0x00, 8][..], &echo::AID].concat();
            Script::new(Script::EMBEDDED | Script::RULES)
                .open_port(2)
                .request(2, Request::GetReaders, &[])
                .then(Operation::Activation, &[1])
                .then(Operation::AnswerPrompt, &[0, 3, 0, 1])
                .request(2, Request::OpenSession, &[0])
                .settle()
                .request(2, Request::OpenChannel, &aid)
                .settle()
                .then(
                    Operation::Answer,
                    &[0, Answer::Response as u8, 2, 0x6A, 0x82],
                )
                .settle()
                .then(Operation::AnswerPrompt, &[0, 2, 0, 1])
                .settle()
                .then(Operation::Overview, &[])
                .then(Operation::Revoke, &[1])
                .settle()
                .then(Operation::Revoke, &[0])
                .settle()
                .done()
        }),
        ("the-user-refuses", {
            Script::new(Script::EMBEDDED | Script::PCSC)
                .open_port(2)
                .request(2, Request::GetReaders, &[])
                .then(Operation::Activation, &[0])
                .request(2, Request::GetReaders, &[])
                .then(Operation::Activation, &[1])
                .then(Operation::WorkerStarted, &[0])
                .then(Operation::Readers, &[1, 0, 1, 0])
                .then(Operation::Readers, &[0])
                .then(Operation::AnswerPrompt, &[0, 0, 0, 0])
                .request(2, Request::GetReaders, &[])
                .then(Operation::Activation, &[1])
                .then(Operation::ClosePort, &[2])
                .done()
        }),
        ("permission-withdrawn", {
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::SetGrant, &[0, 0])
                .settle()
                .done()
        }),
        ("permission-withdrawn-early", {
            embedded()
                .open_port(0)
                .request(0, Request::GetReaders, &[])
                .request(0, Request::OpenSession, &[0])
                .then(Operation::WorkerStarted, &[0])
                .then(Operation::SetGrant, &[0, 0])
                .settle()
                .request(0, Request::OpenSession, &[0])
                .settle()
                .done()
        }),
        ("two-documents", {
            embedded()
                .with_channel(0)
                .with_channel(1)
                .request(0, Request::Reset, &[0])
                .request(1, Request::TransmitRaw, &echo)
                .then(Operation::ClosePort, &[0])
                .settle()
                .request(1, Request::Reset, &[0])
                .settle()
                .done()
        }),
        ("select-next", {
            embedded()
                .with_channel(0)
                .request(0, Request::SelectNext, &[1, 5])
                .then(
                    Operation::Answer,
                    &[0, Answer::Response as u8, 2, 0x6A, 0x82],
                )
                .request(0, Request::SelectNext, &[1, 0])
                .settle()
                .done()
        }),
        ("shutdown", {
            embedded()
                .with_channel(0)
                .request(0, Request::Shutdown, &[])
                .settle()
                .request(0, Request::CloseSessions, &[0])
                .request(0, Request::CloseSession, &[1])
                .done()
        }),
        ("worker-dies", {
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::WorkerEnded, &[0])
                .request(0, Request::OpenSession, &[0])
                .settle()
                .done()
        }),
        ("worker-hangs", {
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::Deadline, &[])
                .settle()
                .then(Operation::Wait, &[0xFF, 0xFF])
                .done()
        }),
        ("card-returns", {
            embedded()
                .with_channel(0)
                .then(Operation::Report, &[0, 2])
                .then(Operation::Report, &[0, 1])
                .settle()
                .done()
        }),
        ("dishonest-card", {
            embedded()
                .with_channel(0)
                .request(0, Request::OpenChannel, &[1, 1, 0x00, 0])
                .then(
                    Operation::Answer,
                    &[0, Answer::Response as u8, 3, 1, 0x90, 0],
                )
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::Answer, &[0, Answer::Error as u8, 3])
                .settle()
                .done()
        }),
        ("mistaken-worker", {
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::Answer, &[0, Answer::Mistaken as u8])
                .settle()
                .done()
        }),
        ("too-much-data", {
            let long = [1, 0, 0xFF, 0xF0];
            (0..20)
                .fold(embedded().with_channel(0), |script, _| {
                    script.request(0, Request::TransmitLong, &long)
                })
                .settle()
                .done()
        }),
        ("pcsc-readers", {
            pcsc()
                .request(0, Request::OpenSession, &[0])
                .settle()
                .then(Operation::Readers, &[1, 1, 1, 2])
                .then(Operation::Readers, &[1, 1, 1, 4])
                .settle()
                .then(Operation::Report, &[0, 0])
                .done()
        }),
        ("no-pcsc", {
            Script::new(Script::PCSC)
                .open_port(0)
                .request(0, Request::GetReaders, &[])
                .then(Operation::Deadline, &[])
                .then(Operation::Deadline, &[])
                .done()
        }),
        ("garbage", {
            let garbage = [0, 3, 0xFF, 0xFF, 0xFF];
            embedded()
                .with_channel(0)
                .request(0, Request::TransmitRaw, &echo)
                .then(Operation::WorkerFrame, &garbage)
                .then(Operation::PortFrame, &garbage)
                .settle()
                .done()
        }),
    ]
}
