/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Cards that are UICCs, and those that are not: rules in files.

use virtual_card::Profile;
use virtual_card::applets::files::File;
use virtual_card::applets::uicc::{
    self, Arf, Directory, EF_AC_CONDITIONS, EF_AC_MAIN, EF_AC_RULES, EF_DODF, EF_ODF, USIM_AID,
    data_object, directory_entry,
};

use super::*;

/// A card without an ARA-M, with this EF.DIR and these files.
fn card(directory: Option<File>, arf: Option<Arf>) -> VirtualCard {
    let mut card = VirtualCard::from_profile("no-rules").unwrap();
    if let Some(directory) = directory {
        card.install(Box::new(Directory::new(directory)));
    }
    if let Some(arf) = arf {
        card.install(Box::new(arf));
    }
    card
}

fn usim() -> Option<File> {
    let records = [&uicc::AID, &USIM_AID].map(|aid| directory_entry(aid));
    Some(File::Records(records.to_vec()))
}

fn no_usim() -> Option<File> {
    Some(File::Records(vec![directory_entry(&uicc::AID)]))
}

/// The device allows the echo applet on whatever is no UICC.
const NO_UICC: &str = r#"
    [[rule]]
    origin = "*"
    aid = "F0534552564F0101"
    element = "ese"
    apdu = "always"
"#;

/// What becomes of a channel to an applet on this card.
fn attempt(card: VirtualCard, device_rules: &str, aid: &[u8]) -> Result<(), ErrorKind> {
    let mut rig = Rig::with_card(Some(access(device_rules, None)), card);
    let (port, session) = rig.visit(ORIGIN);
    let outcome = rig.try_open(port, session, aid).map(drop);
    // Whatever it was, reading the rules has left nothing open, and the second time is like the first.
    assert_eq!(rig.card().open_channels(), usize::from(outcome.is_ok()));
    assert_eq!(rig.try_open(port, session, aid).map(drop), outcome);
    outcome
}

#[test]
fn the_files_of_a_uicc_decide() {
    let mut rig = Rig::with_card(Some(access("", None)), card(usim(), Some(Arf::sample())));
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
    assert!(rig.try_open(port, session, &conformance::AID).is_ok());
    for aid in [
        &echo::SECOND_AID[..],
        &pin::AID,
        b"\xF0NOBODY",
        &uicc::AID,
        &[],
    ] {
        let refused = rig.try_open(port, session, aid);
        assert_eq!(refused, Err(ErrorKind::Security), "{aid:02X?}");
    }
    let (wallet, session) = rig.visit(WALLET);
    assert!(rig.try_open(wallet, session, &echo::SECOND_AID).is_ok());
    let (shop, session) = rig.visit(SHOP);
    let channel = rig.try_open(shop, session, &echo::SECOND_AID).unwrap();
    assert!(rig.try_send(shop, channel, &[0x80, 0x10, 0, 0]).is_ok());
    let refused = rig.try_send(shop, channel, &[0x80, 0x12, 0, 0]);
    assert_eq!(refused, Err(ErrorKind::Security));
    assert_eq!(rig.card().open_channels(), 4);
}

#[test]
fn files_of_what_is_no_uicc_are_no_rules() {
    // The rules of the device decide, and those in the files do not.
    for directory in [
        None,
        no_usim(),
        Some(File::Records(vec![])),
        Some(File::Transparent(directory_entry(&USIM_AID))),
        Some(File::Failing(StatusWord(0x6982))),
        Some(File::Unreadable(StatusWord(0x6982))),
        Some(File::Failing(StatusWord(0x6F00))),
    ] {
        let card = |directory: &Option<File>| card(directory.clone(), Some(Arf::sample()));
        assert_eq!(attempt(card(&directory), NO_UICC, &echo::AID), Ok(()));
        let other = attempt(card(&directory), NO_UICC, &conformance::AID);
        assert_eq!(other, Err(ErrorKind::Security), "{directory:?}");
    }
}

#[test]
fn a_uicc_without_rules_is_closed_unless_the_device_has_some_for_uiccs() {
    let without = [
        // No such application; no data object directory; no access control entry in it.
        None,
        Some(Arf::sample().with_file(EF_ODF, File::Transparent(vec![]))),
        Some(Arf::sample().with_file(EF_DODF, File::Transparent(vec![]))),
    ];
    let for_uiccs = NO_UICC.replace("ese", "uicc");
    for arf in without {
        let card = || card(usim(), arf.clone());
        assert_eq!(attempt(card(), "", &echo::AID), Err(ErrorKind::Security));
        let other = attempt(card(), NO_UICC, &echo::AID);
        assert_eq!(other, Err(ErrorKind::Security));
        assert_eq!(attempt(card(), &for_uiccs, &echo::AID), Ok(()));
    }
}

#[test]
fn files_that_cannot_be_understood_close_the_element() {
    let two_main_files = [data_object(EF_AC_MAIN), data_object(0x4201)].concat();
    let transparent = |bytes: &[u8]| File::Transparent(bytes.to_vec());
    let sample = Arf::sample;
    let second = EF_AC_CONDITIONS + 1;
    let everybody = format!("{NO_UICC}{}", NO_UICC.replace("ese", "uicc"));
    for (what, arf) in [
        ("no ODF", sample().without_file(EF_ODF)),
        ("no DODF", sample().without_file(EF_DODF)),
        ("no main file", sample().without_file(EF_AC_MAIN)),
        ("no rules file", sample().without_file(EF_AC_RULES)),
        ("no conditions", sample().without_file(second)),
        (
            "two main files",
            sample().with_file(EF_DODF, transparent(&two_main_files)),
        ),
        (
            "malformed ODF",
            sample().with_file(EF_ODF, transparent(&[0xA7, 9])),
        ),
        (
            "malformed DODF",
            sample().with_file(EF_DODF, transparent(&[0xA1, 2, 0x30, 0])),
        ),
        (
            "malformed main file",
            sample().with_file(EF_AC_MAIN, transparent(&[0x30, 0])),
        ),
        (
            "malformed rules",
            sample().with_file(EF_AC_RULES, transparent(&[1, 2, 3])),
        ),
        (
            "malformed conditions",
            sample().with_file(second, transparent(&[0x30, 1])),
        ),
        (
            "refused",
            sample().with_file(EF_AC_RULES, File::Failing(StatusWord(0x6982))),
        ),
        (
            "unreadable",
            sample().with_file(second, File::Unreadable(StatusWord(0x6981))),
        ),
        (
            "broken",
            sample().with_file(second, File::Unreadable(StatusWord(0x6581))),
        ),
    ] {
        let outcome = attempt(card(usim(), Some(arf)), &everybody, &echo::AID);
        assert_eq!(outcome, Err(ErrorKind::Security), "{what}");
    }
    // An EF.DIR that is there, and cannot be read now, leaves open what the card is.
    for status in [0x6F00, 0x6581] {
        let directory = Some(File::Unreadable(StatusWord(status)));
        let outcome = attempt(card(directory, None), &everybody, &echo::AID);
        assert_eq!(outcome, Err(ErrorKind::Security));
    }
}

#[test]
fn conditions_that_are_empty_are_for_nobody() {
    let nobody = Arf::sample().with_file(EF_AC_CONDITIONS, File::Transparent(vec![]));
    let card = || card(usim(), Some(nobody.clone()));
    assert_eq!(attempt(card(), "", &echo::AID), Err(ErrorKind::Security));
    assert_eq!(attempt(card(), "", &conformance::AID), Ok(()));
}

#[test]
fn what_a_uicc_selects_by_default_is_nobodys_on_a_supplementary_channel() {
    let list: [uicc::Rule<'_>; 1] = [(None, &[], &ALWAYS)];
    let everybodys = || Some(Arf::with_rules(&list));
    let for_the_default = "[[rule]]\norigin = \"*\"\naid = \"default\"\napdu = \"always\"\n";
    for (directory, supplementary) in [(usim(), false), (no_usim(), true)] {
        let card = card(directory, everybodys());
        let mut rig = Rig::with_card(Some(access(for_the_default, None)), card);
        let (port, session) = rig.visit(ORIGIN);
        let body = RequestBody::OpenChannel {
            session,
            channel_type: ChannelType::Supplementary,
            aid: None,
            p2: 0,
        };
        let opened = rig.channel_or_error(port, body).map(drop);
        let expected = match supplementary {
            true => Ok(()),
            false => Err(ErrorKind::Security),
        };
        assert_eq!(opened, expected);
        let basic = rig.channel_or_error(port, open_basic(session, None));
        assert!(basic.is_ok());
    }
}

#[test]
fn an_ara_m_comes_before_the_files() {
    let mut both = card(usim(), Some(Arf::sample()));
    both.install(Box::new(AraM::with_rules(ara_m::rule(
        Some(&pin::AID),
        &[],
        &ALWAYS,
    ))));
    let mut rig = Rig::with_card(Some(access("", None)), both);
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &pin::AID).is_ok());
    let refused = rig.try_open(port, session, &echo::AID);
    assert_eq!(refused, Err(ErrorKind::Security));
    // One without rules, too.
    let mut empty = card(usim(), Some(Arf::sample()));
    empty.install(Box::new(AraM::new()));
    let refused = attempt(empty, "", &echo::AID);
    assert_eq!(refused, Err(ErrorKind::Security));
}

#[test]
fn files_are_read_again_when_their_refresh_tag_changes() {
    let mut rig = Rig::with_card(Some(access("", None)), card(usim(), Some(Arf::sample())));
    let (port, session) = rig.visit(ORIGIN);
    let mut commands = 0;
    let mut cost = |rig: &mut Rig, aid: &[u8]| {
        let opened = rig.try_open(port, session, aid).map(drop);
        let all = rig.commands(&embedded());
        (opened, all - std::mem::replace(&mut commands, all))
    };
    let (opened, first) = cost(&mut rig, &echo::AID);
    let (again, second) = cost(&mut rig, &echo::AID);
    assert_eq!((opened, again), (Ok(()), Ok(())));
    // EF.DIR, the rules and the conditions are not looked at again.
    assert_eq!(first - second, 3 + 2 + 4 * 2);
    // Other rules, with the tag of the old ones, which is the mistake of whoever wrote them.
    let list: [uicc::Rule<'_>; 1] = [(Some(&pin::AID), &[], &ALWAYS)];
    rig.card().card.install(Box::new(Arf::with_rules(&list)));
    assert_eq!(cost(&mut rig, &pin::AID).0, Err(ErrorKind::Security));
    let main = [
        &[0x30, 0x10, 0x04, 8, 9, 9, 9, 9, 9, 9, 9, 9, 0x30, 4, 4, 2][..],
        &EF_AC_RULES.to_be_bytes(),
    ];
    let changed = Arf::with_rules(&list).with_file(EF_AC_MAIN, File::Transparent(main.concat()));
    rig.card().card.install(Box::new(changed));
    assert_eq!(cost(&mut rig, &pin::AID).0, Ok(()));
    assert_eq!(cost(&mut rig, &echo::AID).0, Err(ErrorKind::Security));
    // An ARA-M that comes later takes their place.
    rig.card().card.install(Box::new(AraM::for_everybody()));
    assert_eq!(cost(&mut rig, &echo::AID).0, Ok(()));
}

#[test]
fn the_refresh_tag_of_files_is_not_that_of_an_ara_m() {
    let mut rig = Rig::with_card(Some(access("", None)), card(usim(), Some(Arf::sample())));
    let (port, session) = rig.visit(ORIGIN);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
    // It begins with the tag that the files have.
    let rule = ara_m::rule(Some(&pin::AID), &[], &ALWAYS);
    rig.card().card.install(Box::new(AraM::with_rules(rule)));
    assert!(rig.try_open(port, session, &pin::AID).is_ok());
    let refused = rig.try_open(port, session, &echo::AID);
    assert_eq!(refused, Err(ErrorKind::Security));
}

#[test]
fn what_is_no_uicc_is_looked_at_once() {
    let mut rig = Rig::with_card(Some(access(NO_UICC, None)), card(no_usim(), None));
    let (port, session) = rig.visit(ORIGIN);
    let mut cost = || {
        let before = rig.commands(&embedded());
        rig.try_open(port, session, &echo::AID).unwrap();
        rig.commands(&embedded()) - before
    };
    // A channel, the ARA-M, EF.DIR, two records, and the end of the channel.
    assert_eq!(cost(), cost() + 6);
    // The next card in the reader may be one.
    rig.ask(port, RequestBody::Reset(ReaderId(0))).unwrap();
    let uicc = Directory::new(usim().unwrap());
    rig.card().card.install(Box::new(uicc));
    let session = rig.open_session(port);
    let refused = rig.try_open(port, session, &echo::AID);
    assert_eq!(refused, Err(ErrorKind::Security));
    // And the one after it may be none.
    rig.ask(port, RequestBody::Reset(ReaderId(0))).unwrap();
    rig.card()
        .card
        .install(Box::new(Directory::new(no_usim().unwrap())));
    let session = rig.open_session(port);
    assert!(rig.try_open(port, session, &echo::AID).is_ok());
}

#[test]
fn a_failure_while_files_are_read_is_none_of_the_cards() {
    // Wherever it comes.
    let mut failures = 0;
    for answers in 0.. {
        let mut rig = Rig::with_card(Some(access("", None)), card(usim(), Some(Arf::sample())));
        let (port, session) = rig.visit(ORIGIN);
        let request = rig.send(port, open(session, &echo::AID));
        let worker = rig.worker(&embedded()).unwrap();
        for _ in 0..answers {
            assert!(rig.answer(worker));
        }
        if let Some(reply) = rig.take(port, request) {
            assert!(reply.is_ok());
            break;
        }
        rig.fail(worker, WorkerError::Timeout);
        rig.settle();
        assert_eq!(rig.kind(port, request), Some(ErrorKind::Io), "{answers}");
        assert!(rig.try_open(port, session, &echo::AID).is_ok(), "{answers}");
        assert!(rig.card().open_channels() <= 2, "{answers}");
        failures += 1;
    }
    // To open, the ARA-M, EF.DIR and two records, the application, eight files, to close; and the channel itself.
    assert_eq!(failures, 2 + 3 + 1 + 8 * 2 + 1 + 2);
}

#[test]
fn a_uicc_without_logical_channels_has_its_files_read_on_the_basic_one() {
    let profile = Profile {
        supplementary_channels: 0,
        ..Profile::named("no-rules").unwrap()
    };
    let mut card = VirtualCard::new(profile, Box::new(Directory::sample()));
    for echo in echo::Echo::all() {
        card.install(Box::new(echo));
    }
    card.install(Box::new(Arf::sample()));
    let mut rig = Rig::with_card(Some(access("", None)), card);
    let (port, session) = rig.visit(ORIGIN);
    let mut open = |aid: Option<&[u8]>| rig.channel_or_error(port, open_basic(session, aid));
    assert_eq!(open(Some(&echo::SECOND_AID)), Err(ErrorKind::Security));
    assert_eq!(open(None), Err(ErrorKind::Security));
    assert!(open(Some(&echo::AID)).is_ok());
    assert_eq!(open(Some(&echo::AID)), Err(ErrorKind::NoChannel));
}

#[test]
fn a_reader_for_uiccs_is_one_by_its_name() {
    for (is_named, element_type) in [(true, ElementType::Uicc), (false, ElementType::SmartCard)] {
        let device_rules = NO_UICC.replace("ese", "smartcard");
        let names = if is_named { &["Slot"][..] } else { &["Slo"] };
        let mut rig = Rig::with_uicc_readers(access(&device_rules, Some(WhenNoRules::Deny)), names);
        // Without EF.DIR.
        let slot = WorkerKind::PcscReader {
            reader: "Slot".into(),
        };
        rig.insert_card(slot.clone(), card(None, Some(Arf::sample())));
        let (port, reader, _) = rig.slot(true);
        assert_eq!(rig.readers(port)[1].element_type, element_type);
        let Ok(ReplyBody::Session(session)) = rig.ask(port, RequestBody::OpenSession(reader))
        else {
            panic!("no session");
        };
        let opened = rig.try_open(port, session.id, &echo::AID);
        assert!(opened.is_ok());
        // This one only the files allow.
        let by_files = rig.try_open(port, session.id, &conformance::AID);
        assert_eq!(by_files.is_ok(), is_named, "{by_files:?}");
    }
}
