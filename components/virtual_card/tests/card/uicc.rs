/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! EF.DIR and the access rule files, read as the broker reads them.

use secure_element::access::{
    AppId, ArfReader, ArfStep, DirectoryReader, DirectoryStep, Outcome, RuleSet, Target,
    parse_rules,
};
use secure_element::apdu::Header;
use secure_element::channel::Aid;
use virtual_card::applets::ara_m::rule;
use virtual_card::applets::files::File;
use virtual_card::applets::uicc::{self, Arf, Directory, EF_AC_MAIN, EF_DIR, directory_entry};
use virtual_card::applets::{conformance, echo, issuer, pin};

use super::{BASIC, Client, Kind, StatusWord, name, ok, status};

fn is_uicc(client: &mut Client) -> bool {
    let own = client.open_with(&[]);
    let mut step = DirectoryReader::start(own);
    loop {
        step = match step {
            DirectoryStep::Send(reader, command) => {
                reader.receive(&client.run(&command, Kind::Ordinary))
            }
            DirectoryStep::Done(is_uicc) => return is_uicc,
            DirectoryStep::Closed(why) => panic!("{why}"),
        };
    }
}

fn read(client: &mut Client) -> Outcome {
    let own = client.open_with(&[]);
    let mut step = ArfReader::start(own, None);
    loop {
        step = match step {
            ArfStep::Send(reader, command) => reader.receive(&client.run(&command, Kind::Ordinary)),
            ArfStep::Done(outcome) => return outcome,
        };
    }
}

fn rules(client: &mut Client) -> RuleSet {
    match read(client) {
        Outcome::Rules { rules, .. } => *rules,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_profile_is_a_uicc_and_has_the_rules_of_the_other_one_in_files() {
    let mut client = Client::new("uicc");
    assert!(is_uicc(&mut client));
    let from_files = rules(&mut client);
    let mut other = Client::new("ara-m");
    assert!(!is_uicc(&mut other));
    other.select(&virtual_card::applets::ara_m::AID, BASIC);
    let all = other.send(BASIC, [0x80, 0xCA, 0xFF, 0x40], &[], Some(65_536));
    let all = secure_element::tlv::Reader::new(&all.data).only().unwrap();
    let from_ara_m = RuleSet::new(parse_rules(all.value).unwrap());

    let mut allowed = 0;
    for origin in [
        "https://wallet.example",
        "https://shop.example",
        "https://a.example",
    ] {
        let app = AppId::from_origin(origin).unwrap();
        for aid in [&echo::AID, &echo::SECOND_AID, &conformance::AID, &pin::AID] {
            let target = Target::Application(Aid::new(aid).unwrap());
            let access = |rules: &RuleSet| rules.channel_access(target, &app);
            assert_eq!(access(&from_files), access(&from_ara_m), "{origin}");
            for ins in [0x10, 0x12] {
                let header = Header::new(0x80, ins, 1, 2);
                allowed += usize::from(access(&from_files).allows_command(header));
            }
        }
    }
    // Two applications for each origin, one more for the wallet, and one command of it for the shop.
    assert_eq!(allowed, 3 * 2 * 2 + 2 + 1);
}

#[test]
fn rules_of_every_kind_are_written_as_they_are_in_an_ara_m() {
    let filters = [[0x00, 0x10, 0, 0, 0xFF, 0xFF, 0, 0], [1; 8]].concat();
    let list: [uicc::Rule<'_>; 5] = [
        (None, &[7; 20], &[1]),
        (Some(&[]), &[], &[0]),
        (Some(&echo::AID), &[7; 32], &filters),
        (Some(&echo::AID), &[8; 20], &[1]),
        (Some(&pin::AID), &[], &[1]),
    ];
    let mut client = Client::new("t0");
    client.card.install(Box::new(Arf::with_rules(&list)));
    let from_files = rules(&mut client);
    let body = list.map(|(aid, origin, access)| rule(aid, origin, access));
    let from_ara_m = RuleSet::new(parse_rules(&body.concat()).unwrap());
    let apps = [
        AppId::from_hashes(Some([7; 32]), None),
        AppId::from_hashes(None, Some([7; 20])),
        AppId::from_hashes(None, Some([8; 20])),
    ];
    for app in apps {
        let aids = [&echo::AID, &pin::AID, &conformance::AID];
        let applications = aids.map(|aid| Target::Application(Aid::new(aid).unwrap()));
        for target in [Target::Implicit].into_iter().chain(applications) {
            assert_eq!(
                from_files.channel_access(target, &app),
                from_ara_m.channel_access(target, &app),
                "{target:?}"
            );
        }
    }
}

#[test]
fn files_are_selected_and_read_by_their_kind() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client
            .card
            .install(Box::new(Directory::new(File::Records(vec![
                directory_entry(&[0xA0; 5]),
                vec![0xFF; 9],
            ]))));
        let arf = Arf::new()
            .with_file(1, File::Transparent((0..=255).collect()))
            .with_file(2, File::Failing(StatusWord(0x6982)))
            .with_file(3, File::Unreadable(StatusWord(0x6581)))
            .with_file(4, File::Records(vec![]))
            .with_file(EF_AC_MAIN, File::Transparent(vec![]))
            .without_file(EF_AC_MAIN);
        client.card.install(Box::new(arf));
        assert!(!is_uicc(&mut client));

        let select = |client: &mut Client, on, p1, p2, id: u16| {
            client.send(on, [0, 0xA4, p1, p2], &id.to_be_bytes(), Some(256))
        };
        let own = client.open_with(&uicc::AID);
        let binary = |client: &mut Client, offset: u16, le| {
            let [p1, p2] = offset.to_be_bytes();
            client.send(own, [0, 0xB0, p1, p2], &[], Some(le))
        };
        assert_eq!(binary(&mut client, 0, 1), status(0x6986));
        assert_eq!(
            select(&mut client, own, 0, 4, 1),
            ok(&[0x62, 12, 0x82, 2, 0x41, 0x21, 0x83, 2, 0, 1, 0x80, 2, 1, 0])
        );
        assert_eq!(binary(&mut client, 250, 3), ok(&[250, 251, 252]));
        let end = binary(&mut client, 254, 3);
        assert_eq!((end.data, end.status), (vec![254, 255], StatusWord(0x6282)));
        assert_eq!(binary(&mut client, 254, 256), ok(&[254, 255]));
        assert_eq!(binary(&mut client, 257, 1), status(0x6B00));
        // Another channel has selected nothing, and a SELECT that fails changes nothing.
        let other = client.open_with(&uicc::AID);
        assert_eq!(
            client.send(other, [0, 0xB0, 0, 0], &[], Some(1)),
            status(0x6986)
        );
        assert_eq!(select(&mut client, own, 9, 4, 2), status(0x6982));
        assert_eq!(select(&mut client, own, 0, 4, EF_AC_MAIN), status(0x6A82));
        assert_eq!(select(&mut client, own, 0, 0, 1), status(0x6A86));
        assert_eq!(select(&mut client, own, 1, 4, 1), status(0x6A86));
        assert_eq!(binary(&mut client, 0, 1).data, [0]);
        assert!(select(&mut client, own, 0, 0x0C, 3).data.is_empty());
        assert_eq!(binary(&mut client, 0, 1), status(0x6581));
        select(&mut client, own, 0, 4, 4);
        assert_eq!(binary(&mut client, 0, 1), status(0x6981));
        assert_eq!(
            client.send(own, [0, 0xB2, 1, 4], &[], Some(256)),
            status(0x6A83)
        );
        assert_eq!(
            client.send(own, [0, 0xCA, 0, 0], &[], Some(1)),
            status(0x6D00)
        );

        // EF.DIR, and what is selected together with it.
        assert_eq!(name(&client.select(&[], BASIC)), issuer::AID);
        assert_eq!(
            select(&mut client, BASIC, 8, 4, EF_DIR).status,
            StatusWord::OK
        );
        let record = |client: &mut Client, number, p2| {
            client.send(BASIC, [0, 0xB2, number, p2], &[], Some(256))
        };
        assert_eq!(
            record(&mut client, 1, 4),
            ok(&[0x61, 7, 0x4F, 5, 0xA0, 0xA0, 0xA0, 0xA0, 0xA0])
        );
        assert_eq!(record(&mut client, 2, 4), ok(&[0xFF; 9]));
        for number in [0, 3] {
            assert_eq!(record(&mut client, number, 4), status(0x6A83));
        }
        assert_eq!(record(&mut client, 1, 0), status(0x6A86));
        assert_eq!(
            client.send(BASIC, [0, 0xB0, 0, 0], &[], Some(1)),
            status(0x6981)
        );
        let life_cycle = client.send(BASIC, [0x80, 0xCA, 0x9F, 0x7F], &[], Some(256));
        assert_eq!(life_cycle.data.len(), 45);
    }
}
