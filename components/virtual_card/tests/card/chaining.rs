/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Command chaining.

use proptest::prelude::*;
use virtual_card::Card;
use virtual_card::applets::{conformance, echo, issuer};

use super::{BASIC, Client, channel, name, ok, status};

const LINK: [u8; 4] = [0x10, echo::INS_ECHO, 0, 0];
const LAST: [u8; 4] = [0x00, echo::INS_ECHO, 0, 0];

fn client(profile: &str) -> Client {
    let mut client = Client::new(profile);
    client.select(&echo::AID, BASIC);
    client
}

#[test]
fn links_are_one_command() {
    for profile in ["default", "t0", "no-extended-length"] {
        for cla in [0x00, 0x80] {
            let mut client = client(profile);
            let link = [cla | 0x10, echo::INS_STATUS, 0x62, 0x81];
            let last = [cla, echo::INS_STATUS, 0x62, 0x81];
            assert_eq!(client.send(BASIC, link, &[1, 2], None), ok(&[]));
            assert_eq!(client.send(BASIC, link, &[3], None), ok(&[]));
            let answer = client.send(BASIC, last, &[4], Some(256));
            assert_eq!(
                (&*answer.data, answer.status.0),
                (&[1, 2, 3, 4][..], 0x6281)
            );
            // It counts once, and the next command is by itself.
            let count = client.send(BASIC, [cla, echo::INS_COUNT, 0, 0], &[], Some(4));
            assert_eq!(count, ok(&[0, 0, 0, 1]), "{profile}");
            assert_eq!(client.send(BASIC, LAST, &[5], Some(256)), ok(&[5]));
        }
    }
}

#[test]
fn channels_have_chains_of_their_own() {
    for profile in ["default", "t0"] {
        let mut client = client(profile);
        for _ in 0..5 {
            client.open();
        }
        client.select(&echo::AID, channel(5));
        assert_eq!(client.send(BASIC, LINK, &[1], None), ok(&[]));
        assert_eq!(client.send(channel(5), LINK, &[2], None), ok(&[]));
        assert_eq!(client.send(BASIC, LAST, &[3], Some(256)), ok(&[1, 3]));
        assert_eq!(client.send(channel(5), LAST, &[4], Some(256)), ok(&[2, 4]));
    }
}

#[test]
fn a_chain_that_is_not_finished_ends_at_another_command() {
    for profile in ["default", "t0"] {
        let mut client = client(profile);
        for other in [
            [0x00, echo::INS_ECHO, 0, 1],
            [0x00, echo::INS_ECHO, 1, 0],
            [0x00, echo::INS_STATUS, 0, 0],
            [0x80, echo::INS_ECHO, 0, 0],
            [0x10, echo::INS_STATUS, 0, 0],
            [0x00, echo::INS_CHANNEL, 0, 0],
        ] {
            assert_eq!(client.send(BASIC, LINK, &[1], None), ok(&[]));
            assert_eq!(client.send(BASIC, other, &[], None), status(0x6883));
            assert_eq!(
                client.send(BASIC, LAST, &[2], Some(256)),
                ok(&[2]),
                "{other:02X?}"
            );
        }
        // The card's own commands are carried out.
        assert_eq!(client.send(BASIC, LINK, &[1], None), ok(&[]));
        assert_eq!(
            name(&client.select(&echo::SECOND_AID, BASIC)),
            echo::SECOND_AID
        );
        assert_eq!(client.send(BASIC, LAST, &[2], Some(256)), ok(&[2]));
        assert_eq!(client.send(BASIC, LINK, &[1], None), ok(&[]));
        client.open();
        assert_eq!(client.send(BASIC, LAST, &[2], Some(256)), ok(&[2]));
        // And so is a reset.
        assert_eq!(client.send(BASIC, LINK, &[1], None), ok(&[]));
        client.card.reset();
        client.select(&echo::AID, BASIC);
        assert_eq!(client.send(BASIC, LAST, &[2], Some(256)), ok(&[2]));
    }
}

#[test]
fn only_some_commands_can_be_chained() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        for (aid, ins, sw) in [
            (&issuer::AID[..], 0xCA, 0x6884),
            (&echo::AID, echo::INS_CHANNEL, 0x6884),
            (&echo::AID, echo::INS_FAULT, 0x6884),
            (&conformance::AID, 0x06, 0x6884),
            (&echo::AID, 0x70, 0x6884),
            (&echo::AID, echo::INS_DELAY, 0x9000),
        ] {
            client.select(aid, BASIC);
            let answer = client.send(BASIC, [0x10, ins, 0, 0], &[], None);
            assert_eq!(answer, status(sw), "{profile} {ins:02X}");
        }
        client.select(&echo::AID, BASIC);
        assert_eq!(
            client.send(BASIC, [0x14, 0x10, 0, 0], &[], None),
            status(0x6882)
        );
    }
}

#[test]
fn a_chain_has_an_end() {
    let mut client = client("default");
    let send = |client: &mut Client, header, length: usize| {
        client.send(BASIC, header, &vec![9; length], Some(65_536))
    };
    assert_eq!(send(&mut client, LINK, 65_000), ok(&[]));
    assert_eq!(send(&mut client, LAST, 535), ok(&[9; 65_535]));
    assert_eq!(send(&mut client, LINK, 65_000), ok(&[]));
    assert_eq!(send(&mut client, LAST, 536), status(0x6700));
    assert_eq!(send(&mut client, LINK, 65_000), ok(&[]));
    assert_eq!(send(&mut client, LINK, 536), status(0x6700));
    assert_eq!(send(&mut client, LAST, 1), ok(&[9]));
}

proptest! {
    #[test]
    fn whatever_the_links_they_come_together(
        data in proptest::collection::vec(any::<u8>(), 1..2_000),
        length in 1_usize..=255,
        t0 in any::<bool>(),
    ) {
        let mut client = client(if t0 { "t0" } else { "default" });
        let mut links = data.chunks(length).peekable();
        while let Some(link) = links.next() {
            let is_last = links.peek().is_none();
            let header = if is_last { LAST } else { LINK };
            let le = is_last.then_some(65_536);
            let answer = client.send(BASIC, header, link, le);
            prop_assert_eq!(answer, if is_last { ok(&data) } else { ok(&[]) });
        }
    }
}
