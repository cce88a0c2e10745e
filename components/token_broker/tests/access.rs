/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules and origin-aware applets, with the real processes and cards behind a real `pcscd`.

mod common;

use common::*;
use secure_element::apdu::StatusWord;
use token_traits::ErrorKind;
use token_traits::control::{AccessConfig, WhenNoRules};
use token_traits::port::{Command, ElementType, ReplyBody, RequestBody, SessionId};
use virtual_card::applets::ara_m::AraM;
use virtual_card::applets::files::File;
use virtual_card::applets::origin::{self, OriginAware};
use virtual_card::applets::uicc::{
    Arf, Directory, EF_AC_CONDITIONS, EF_AC_MAIN, EF_AC_RULES, EF_DODF, EF_ODF, data_object,
};
use virtual_card::applets::{conformance, echo, pin};
use virtual_card::test_support::Pcscd;
use virtual_card::{Profile, VirtualCard};

const WALLET: &str = "https://wallet.example";

fn card(profile: &str) -> VirtualCard {
    VirtualCard::from_profile(profile).expect("a profile")
}

/// With rules of the device that allow everybody the echo applet on any element, and no prompts.
fn access() -> AccessConfig {
    AccessConfig {
        device_rules: "[[rule]]\norigin = \"*\"\naid = \"F0534552564F0101\"\napdu = \"always\"\n"
            .to_owned(),
        when_no_rules: Some(WhenNoRules::Deny),
    }
}

/// A page of this origin that has a session with the one card that is there.
fn visit(browser: &Browser, origin: &str) -> (Page, SessionId) {
    browser.grant(origin);
    let mut page = browser.try_open_page(origin).expect("a port");
    let reader = wait_for("the card", || {
        page.readers().into_iter().find(|reader| reader.present)
    });
    let session = page.open_session(reader.id);
    (page, session)
}

/// What comes of an applet and of a command to it.
fn attempt(
    page: &mut Page,
    session: SessionId,
    aid: &[u8],
    apdu: &[u8],
) -> Result<Vec<u8>, ErrorKind> {
    let channel = match page.ask(open(session, aid)) {
        Ok(ReplyBody::Channel(channel)) => channel.id,
        other => return Err(kind(other)),
    };
    let sent = page.ask(RequestBody::Transmit {
        channel,
        command: Command::Raw(apdu.to_vec()),
        timeout_ms: None,
    });
    assert_eq!(
        page.ask(RequestBody::CloseChannel(channel)),
        Ok(ReplyBody::Done)
    );
    match sent {
        Ok(ReplyBody::Response(response)) => Ok(response),
        other => Err(kind(other)),
    }
}

const PARAMETERS: [u8; 5] = [0x00, echo::INS_PARAMETERS, 7, 8, 0];
const OK: [u8; 2] = [0x90, 0x00];

#[test]
fn a_card_tells_origins_apart_over_both_protocols() {
    for profile in ["default", "t0"] {
        let pcscd = Pcscd::start().expect("pcscd");
        let mut card = card(profile);
        let secret = *b"of the bank only";
        card.install(Box::new(OriginAware::sample().with(1, ORIGIN, secret)));
        let _inserted = pcscd.insert(0, card).expect("a card");
        let browser = Browser::with_access(access(), vec![]);
        let (mut bank, own) = visit(&browser, ORIGIN);
        let (mut wallet, theirs) = visit(&browser, WALLET);
        for (slot, banks, wallets) in [
            (
                0,
                vec![0x69, 0x82],
                [&origin::SAMPLE_SECRET[..], &OK].concat(),
            ),
            (1, [&secret[..], &OK].concat(), vec![0x69, 0x82]),
            (2, vec![0x69, 0x82], vec![0x69, 0x82]),
        ] {
            let get_secret = [0x80, origin::INS_GET_SECRET, slot, 0, 0];
            let answer = attempt(&mut bank, own, &origin::AID, &get_secret);
            assert_eq!(answer, Ok(banks), "{profile} {slot}");
            let answer = attempt(&mut wallet, theirs, &origin::AID, &get_secret);
            assert_eq!(answer, Ok(wallets), "{profile} {slot}");
        }
        let present = [
            &[0x80, origin::INS_PRESENT_ORIGIN, 0, 0, 22][..],
            WALLET.as_bytes(),
        ]
        .concat();
        let answer = attempt(&mut bank, own, &origin::AID, &present);
        assert_eq!(answer, Err(ErrorKind::Security));
        // Others know nothing of it.
        assert_eq!(
            attempt(&mut bank, own, &echo::AID, &PARAMETERS),
            Ok(vec![7, 8, 0x90, 0])
        );
    }
}

#[test]
fn the_files_of_a_uicc_decide() {
    let pcscd = Pcscd::start().expect("pcscd");
    let _inserted = pcscd.insert(0, card("uicc")).expect("a card");
    let browser = Browser::with_access(access(), vec![]);
    let (mut page, session) = visit(&browser, ORIGIN);
    let mut tried = |aid: &[u8]| attempt(&mut page, session, aid, &PARAMETERS);
    for _ in 0..2 {
        assert_eq!(tried(&echo::AID), Ok(vec![7, 8, 0x90, 0]));
        assert_eq!(tried(&echo::SECOND_AID), Err(ErrorKind::Security));
        assert_eq!(tried(&pin::AID), Err(ErrorKind::Security));
    }
    let (mut wallet, session) = visit(&browser, WALLET);
    let answer = attempt(&mut wallet, session, &echo::SECOND_AID, &PARAMETERS);
    assert_eq!(answer, Ok(vec![7, 8, 0x90, 0]));
}

/// Files, and whether the device's rules apply with them.
fn failures() -> Vec<(&'static str, Option<Arf>, bool)> {
    let transparent = |bytes: &[u8]| File::Transparent(bytes.to_vec());
    let two_main_files = [data_object(EF_AC_MAIN), data_object(0x4201)].concat();
    let sample = Arf::sample;
    vec![
        ("no application", None, true),
        (
            "no data object directory",
            Some(sample().with_file(EF_ODF, transparent(&[]))),
            true,
        ),
        (
            "no entry",
            Some(sample().with_file(EF_DODF, transparent(&[]))),
            true,
        ),
        (
            "two main files",
            Some(sample().with_file(EF_DODF, transparent(&two_main_files))),
            false,
        ),
        (
            "a missing file",
            Some(sample().without_file(EF_AC_CONDITIONS + 1)),
            false,
        ),
        (
            "a malformed file",
            Some(sample().with_file(EF_AC_RULES, transparent(&[1, 2, 3]))),
            false,
        ),
        (
            "a file that may not be read",
            Some(sample().with_file(EF_AC_MAIN, File::Unreadable(StatusWord(0x6982)))),
            false,
        ),
        (
            "a file that cannot be read",
            Some(sample().with_file(EF_AC_RULES, File::Unreadable(StatusWord(0x6581)))),
            false,
        ),
        (
            "nobody",
            Some(sample().with_file(EF_AC_CONDITIONS, transparent(&[]))),
            false,
        ),
    ]
}

#[test]
fn each_class_of_failure_has_its_outcome() {
    for (what, arf, device_decides) in failures() {
        let pcscd = Pcscd::start().expect("pcscd");
        // Over T=0, as UICCs are.
        let profile = Profile {
            access_rules: virtual_card::AccessRules::None,
            ..Profile::named("uicc").expect("a profile")
        };
        let mut card = VirtualCard::new(profile, Box::new(Directory::sample()));
        for echo in echo::Echo::all() {
            card.install(Box::new(echo));
        }
        if let Some(arf) = arf {
            card.install(Box::new(arf));
        }
        let _inserted = pcscd.insert(0, card).expect("a card");
        let browser = Browser::with_access(access(), vec![]);
        let (mut page, session) = visit(&browser, ORIGIN);
        for _ in 0..2 {
            let answer = attempt(&mut page, session, &echo::AID, &PARAMETERS);
            let expected = match device_decides {
                true => Ok(vec![7, 8, 0x90, 0]),
                false => Err(ErrorKind::Security),
            };
            assert_eq!(answer, expected, "{what}");
            let other = attempt(&mut page, session, &echo::WARNING_AID, &PARAMETERS);
            assert_eq!(other, Err(ErrorKind::Security), "{what}");
        }
    }
}

#[test]
fn a_reader_that_the_configuration_names_has_uiccs() {
    let pcscd = Pcscd::start().expect("pcscd");
    // It says nothing of a USIM.
    let mut card = card("no-rules");
    card.install(Box::new(Arf::sample()));
    let _inserted = pcscd.insert(0, card).expect("a card");
    let browser = Browser::with_access(access(), vec![]);
    let (mut page, session) = visit(&browser, ORIGIN);
    let readers = page.readers();
    let reader = readers
        .iter()
        .find(|reader| reader.present)
        .expect("a card");
    assert_eq!(reader.element_type, ElementType::SmartCard);
    let answer = attempt(&mut page, session, &conformance::AID, &[0x00, 0x06, 0, 0]);
    assert_eq!(answer, Err(ErrorKind::Security));

    let browser = Browser::with_access(access(), vec![reader.name.clone()]);
    let (mut page, session) = visit(&browser, ORIGIN);
    let types: Vec<_> = page
        .readers()
        .iter()
        .map(|reader| reader.element_type)
        .collect();
    assert_eq!(types, [ElementType::Uicc, ElementType::SmartCard]);
    let answer = attempt(&mut page, session, &conformance::AID, &[0x00, 0x06, 0, 0]);
    assert_eq!(answer, Ok(OK.to_vec()));
}

#[test]
fn an_ara_m_is_read_over_both_protocols() {
    for (profile, block) in [("default", 256), ("t0", 255), ("four-channels", 64)] {
        let pcscd = Pcscd::start().expect("pcscd");
        let mut card = card(profile);
        card.install(Box::new(AraM::sample().with_block(block)));
        let _inserted = pcscd.insert(0, card).expect("a card");
        let browser = Browser::with_access(access(), vec![]);
        let (mut page, session) = visit(&browser, ORIGIN);
        let mut tried = |aid: &[u8]| attempt(&mut page, session, aid, &PARAMETERS);
        assert_eq!(tried(&echo::AID), Ok(vec![7, 8, 0x90, 0]), "{profile}");
        assert_eq!(tried(&echo::SECOND_AID), Err(ErrorKind::Security));
    }
}
