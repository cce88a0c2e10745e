/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The card by itself, seen through the same logic that the broker uses.

mod applets;
mod ara_m;
mod chaining;
mod faults;
mod piv;
mod properties;
mod uicc;

use secure_element::apdu::{CommandApdu, Header, ResponseApdu, StatusWord};
use secure_element::atr::Atr;
use secure_element::channel::{
    Aid, Opened, SelectResponse, Selected, close_command, open_command, parse_opened,
    parse_selected, reset_command, select, select_next,
};
use secure_element::class_byte::{ChannelNumber, with_channel};
use secure_element::exchange::{ExchangeError, Kind, Protocol, run};
use secure_element::fci;
use secure_element::tlv::{Reader, Tag};
use virtual_card::applets::{
    ara_m as ara_m_applet, conformance, echo, exclusive, issuer, origin, pin,
};
use virtual_card::{Card, Profile, UnknownProfile, VirtualCard};

struct Client {
    card: VirtualCard,
    protocol: Protocol,
}

impl Client {
    fn new(profile: &str) -> Self {
        Self {
            card: VirtualCard::from_profile(profile).unwrap(),
            protocol: Profile::named(profile).unwrap().protocol,
        }
    }

    fn run(&mut self, command: &CommandApdu, kind: Kind) -> ResponseApdu {
        run::<ExchangeError>(command, self.protocol, kind, |bytes| {
            Ok(self.card.transmit(bytes))
        })
        .unwrap()
    }

    /// On the channel that this opens for it.
    fn open_with(&mut self, aid: &[u8]) -> ChannelNumber {
        let Opened::Channel(channel) = self.open() else {
            panic!("there is no channel");
        };
        let answer = self.select(aid, channel);
        assert!(!answer.status.is_error(), "{answer:?}");
        channel
    }

    /// The channels that are open in the card, which costs the selection on the basic one.
    fn open_channels(&mut self) -> u32 {
        self.select(&echo::AID, BASIC);
        let answer = self.send(BASIC, [0, echo::INS_OPEN_CHANNELS, 0, 0], &[], Some(3));
        let [high, middle, low] = answer.data.try_into().unwrap();
        u32::from_be_bytes([0, high, middle, low])
    }

    fn open(&mut self) -> Opened {
        parse_opened(&self.run(&open_command(), Kind::Ordinary)).unwrap()
    }

    fn select(&mut self, aid: &[u8], channel: ChannelNumber) -> ResponseApdu {
        let aid = Aid::new(aid).ok();
        let command = select(aid.as_ref(), SelectResponse::Fci, channel).unwrap();
        self.run(&command, Kind::Select)
    }

    fn send(
        &mut self,
        channel: ChannelNumber,
        header: [u8; 4],
        data: &[u8],
        le: Option<u32>,
    ) -> ResponseApdu {
        let command = command(channel, header, data, le);
        self.run(&command, Kind::Ordinary)
    }
}

fn command(channel: ChannelNumber, header: [u8; 4], data: &[u8], le: Option<u32>) -> CommandApdu {
    let [cla, ins, p1, p2] = header;
    let cla = with_channel(cla, channel).unwrap();
    let header = Header::new(cla, ins, p1, p2);
    CommandApdu::with_shortest_form(header, data.to_vec(), le).unwrap()
}

const BASIC: ChannelNumber = ChannelNumber::BASIC;

fn channel(number: u8) -> ChannelNumber {
    ChannelNumber::new(number).unwrap()
}

fn ok(data: &[u8]) -> ResponseApdu {
    ResponseApdu::new(data.to_vec(), StatusWord::OK)
}

fn status(sw: u16) -> ResponseApdu {
    StatusWord(sw).into()
}

/// The DF name in an answer to SELECT.
fn name(response: &ResponseApdu) -> Vec<u8> {
    assert_eq!(parse_selected(response), Ok(Selected::Application));
    fci::df_name(&response.data)
        .unwrap()
        .unwrap()
        .as_bytes()
        .to_vec()
}

#[test]
fn profiles_offer_their_protocol() {
    for (name, profile) in Profile::NAMED {
        let card = VirtualCard::from_profile(name).unwrap();
        let atr = Atr::parse(card.atr()).unwrap();
        assert_eq!(atr.offers(0), profile.protocol == Protocol::T0);
        assert_eq!(atr.offers(1), profile.protocol == Protocol::T1);
        let [0x80, 0x73, _, _, capabilities, 0x55, name @ ..] = atr.historical_bytes() else {
            panic!("no card capabilities");
        };
        assert_eq!(name, b"SERVO");
        let t1 = profile.protocol == Protocol::T1;
        assert_eq!(capabilities & 0x40 != 0, t1 && profile.extended_length);
        assert_eq!(capabilities & 0x07, profile.supplementary_channels.min(7));
    }
    let error = VirtualCard::from_profile("none").err();
    assert_eq!(error, Some(UnknownProfile("none".to_owned())));
}

#[test]
fn every_channel_opens_once_and_again_after_closing() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        for number in 1..=19 {
            assert_eq!(client.open(), Opened::Channel(channel(number)), "{profile}");
        }
        assert_eq!(client.open(), Opened::NoChannel);
        assert_eq!(
            client.run(&close_command(channel(7)), Kind::Ordinary),
            status(0x9000)
        );
        assert_eq!(
            client.run(&close_command(channel(7)), Kind::Ordinary),
            status(0x6881)
        );
        assert_eq!(
            client.send(channel(7), [0, 0x10, 0, 0], &[1], Some(1)),
            status(0x6881)
        );
        assert_eq!(client.open(), Opened::Channel(channel(7)));
        client.card.reset();
        assert_eq!(client.open(), Opened::Channel(channel(1)));
    }
    assert_eq!(Client::new("basic-channel-only").open(), Opened::NoChannel);
    let mut client = Client::new("four-channels");
    for number in 1..=3 {
        assert_eq!(client.open(), Opened::Channel(channel(number)));
    }
    assert_eq!(client.open(), Opened::NoChannel);
    assert_eq!(client.card.transmit(&[0x40, 0x10, 0, 0]), [0x68, 0x81]);
}

#[test]
fn open_channels_are_told() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        assert_eq!(client.open_channels(), 1);
        let all: Vec<_> = (1..=19).map(|_| client.open()).collect();
        assert_eq!(client.open_channels(), 0xF_FFFF, "{profile}");
        assert_eq!(all.last(), Some(&Opened::Channel(channel(19))));
        client.run(&close_command(channel(19)), Kind::Ordinary);
        client.run(&close_command(channel(2)), Kind::Ordinary);
        assert_eq!(client.open_channels(), 0x7_FFFB);
    }
}

#[test]
fn a_card_may_have_short_lengths_only() {
    let mut client = Client::new("no-extended-length");
    client.select(&echo::AID, BASIC);
    let mut send = |data: &[u8], le| client.send(BASIC, [0, echo::INS_ECHO, 0, 0], data, le);
    assert_eq!(send(&[7; 255], Some(256)), ok(&[7; 255]));
    assert_eq!(send(&[7; 256], Some(256)), status(0x6700));
    assert_eq!(send(&[7], Some(257)), status(0x6700));
}

#[test]
fn the_issuer_security_domain_is_the_default() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let cplc = client.send(BASIC, [0x00, 0xCA, 0x9F, 0x7F], &[], Some(45));
        assert_eq!((cplc.data.len(), cplc.status), (45, StatusWord::OK));
        assert_eq!(name(&client.select(&echo::AID, BASIC)), echo::AID);
        assert_eq!(
            client.send(BASIC, [0x80, 0xCA, 0x9F, 0x7F], &[], Some(45)),
            status(0x6D00)
        );
        assert_eq!(name(&client.select(&[], BASIC)), issuer::AID);
        assert_eq!(name(&client.select(&echo::AID, BASIC)), echo::AID);
        assert_eq!(client.run(&reset_command(), Kind::Ordinary), status(0x9000));
        assert_eq!(
            client.send(BASIC, [0x80, 0xCA, 0x9F, 0x7F], &[], Some(45)),
            cplc
        );
        assert_eq!(
            client.send(BASIC, [0x80, 0xCA, 0x00, 0x65], &[], Some(45)),
            status(0x6A88)
        );
        let card_data = client.send(BASIC, [0x80, 0xCA, 0x00, 0x66], &[], Some(256));
        let object = Reader::new(&card_data.data).only().unwrap();
        assert_eq!((object.tag, card_data.status), (Tag(0x66), StatusWord::OK));
    }
}

#[test]
fn a_partial_aid_finds_one_after_the_other() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let partial = Aid::new(&echo::AID[..7]).unwrap();
        let next = select_next(&partial, SelectResponse::Fci, BASIC).unwrap();
        assert_eq!(name(&client.select(partial.as_bytes(), BASIC)), echo::AID);
        assert_eq!(name(&client.run(&next, Kind::Select)), echo::SECOND_AID);
        // The end leaves the selection as it is, also at the second attempt.
        assert_eq!(client.run(&next, Kind::Select), status(0x6A82));
        assert_eq!(client.run(&next, Kind::Select), status(0x6A82));
        assert_eq!(
            client.send(BASIC, [0, 0x12, 5, 6], &[], Some(2)),
            ok(&[5, 6])
        );
    }
}

#[test]
fn a_shorter_partial_aid_finds_every_application_of_the_provider() {
    let all: [&[u8]; 9] = [
        &echo::AID,
        &echo::SECOND_AID,
        &echo::WARNING_AID,
        &exclusive::AID,
        &pin::AID,
        &origin::AID,
        &conformance::AID,
        &conformance::LONG_RESPONSE_AID,
        &conformance::UNSELECTABLE_AID,
    ];
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let partial = Aid::new(&echo::AID[..6]).unwrap();
        let mut command = select(Some(&partial), SelectResponse::Fci, BASIC).unwrap();
        let (last, others) = all.split_last().unwrap();
        for aid in others {
            assert_eq!(name(&client.run(&command, Kind::Select)), *aid);
            command = select_next(&partial, SelectResponse::Fci, BASIC).unwrap();
        }
        // The last one refuses, and the one before it stays.
        assert_eq!(client.run(&command, Kind::Select), status(0x6999));
        assert_eq!(client.send(BASIC, [0, 0xF4, 0, 9], &[], Some(1)), ok(&[9]));
        assert_eq!(client.select(last, BASIC), status(0x6999));
        assert_eq!(
            name(&client.select(&ara_m_applet::AID, BASIC)),
            ara_m_applet::AID
        );
    }
    let mut client = Client::new("no-rules");
    assert_eq!(client.select(&ara_m_applet::AID, BASIC), status(0x6A82));
}

#[test]
fn select_answers_as_p2_says() {
    let mut client = Client::new("default");
    let aid = Aid::new(&echo::AID).unwrap();
    for (response, tag) in [
        (SelectResponse::Fci, Some(0x6F)),
        (SelectResponse::Fcp, Some(0x62)),
        (SelectResponse::Fmd, Some(0x64)),
        (SelectResponse::None, None),
    ] {
        let command = select(Some(&aid), response, BASIC).unwrap();
        let answer = client.run(&command, Kind::Select);
        assert_eq!(answer.status, StatusWord::OK);
        assert_eq!(answer.data.first().copied(), tag);
    }
    for p2 in [0x01, 0x03, 0x10, 0x80] {
        let answer = client.send(BASIC, [0, 0xA4, 0x04, p2], &echo::AID, Some(256));
        assert_eq!(answer, status(0x6A86));
    }
    assert_eq!(client.select(&[0xA0, 0, 0, 0, 9], BASIC), status(0x6A82));
    assert_eq!(
        client.send(BASIC, [0, 0xA4, 4, 0], &[1; 17], Some(256)),
        status(0x6A80)
    );
}

#[test]
fn a_warning_at_selection_keeps_its_data() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        let answer = client.select(&echo::WARNING_AID, BASIC);
        assert_eq!(answer.status, StatusWord(0x6283));
        assert_eq!(name(&answer), echo::WARNING_AID);
    }
}

#[test]
fn channels_have_their_own_selection() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        for _ in 0..5 {
            client.open();
        }
        client.select(&echo::AID, channel(1));
        client.select(&echo::SECOND_AID, channel(5));
        assert_eq!(
            client.send(channel(1), [0x80, 0x1C, 0, 0], &[], Some(2)),
            ok(&[1, 0x81])
        );
        assert_eq!(
            client.send(channel(5), [0x80, 0x1C, 0, 0], &[], Some(2)),
            ok(&[5, 0xC1])
        );
        assert_eq!(
            client.send(channel(5), [0x00, 0x1C, 0, 0], &[], Some(2)),
            ok(&[5, 0x41])
        );
        assert_eq!(
            client.send(channel(2), [0x80, 0x1C, 0, 0], &[], Some(2)),
            status(0x6D00)
        );
        assert_eq!(
            client.send(channel(6), [0x80, 0x1C, 0, 0], &[], Some(2)),
            status(0x6881)
        );
    }
}

#[test]
fn echoes_in_every_case_and_length() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client.select(&echo::AID, BASIC);
        let data = echo::pattern(60_000);
        for length in [1, 255, 256, 257, 503, 504, 1_000, 60_000] {
            let data = &data[..length];
            let answer = client.send(BASIC, [0, echo::INS_ECHO, 0, 0], data, Some(65_536));
            assert_eq!(answer, ok(data), "{profile} {length}");
        }
        assert_eq!(
            client.send(BASIC, [0, echo::INS_PARAMETERS, 5, 6], &[], Some(256)),
            ok(&[5, 6])
        );
        for length in [0, 1, 255, 256, 257, 512, 65_535] {
            let [p1, p2] = u16::to_be_bytes(length);
            let header = [0x80, echo::INS_PATTERN, p1, p2];
            assert_eq!(
                client.send(BASIC, header, &[], Some(65_536)),
                ok(&echo::pattern(length)),
                "{profile} {length}"
            );
        }
    }
}

#[test]
fn status_words_of_choice() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client.select(&echo::AID, BASIC);
        for sw in [0x9000, 0x6282, 0x63C1, 0x6985] {
            let [p1, p2] = u16::to_be_bytes(sw);
            let answer = client.send(BASIC, [0, echo::INS_STATUS, p1, p2], &[], Some(256));
            assert_eq!(answer, status(sw));
        }
        let answer = client.send(BASIC, [0, echo::INS_STATUS, 0x62, 0x82], &[1, 2], Some(256));
        assert_eq!(answer, ResponseApdu::new(vec![1, 2], StatusWord(0x6282)));
    }
}

#[test]
fn a_command_is_carried_out_once() {
    for profile in ["default", "t0"] {
        let mut client = Client::new(profile);
        client.select(&echo::AID, BASIC);
        let count = |client: &mut Client| {
            let answer = client.send(BASIC, [0, echo::INS_COUNT, 0, 0], &[], Some(256));
            u32::from_be_bytes(answer.data.try_into().unwrap())
        };
        assert_eq!(count(&mut client), 0);
        // Over T=0 these take a re-issue, GET RESPONSE and envelopes.
        client.send(BASIC, [0, echo::INS_PARAMETERS, 1, 2], &[], Some(256));
        client.send(BASIC, [0, echo::INS_PATTERN, 4, 0], &[], Some(65_536));
        client.send(BASIC, [0, echo::INS_ECHO, 0, 0], &[7; 700], Some(65_536));
        assert_eq!(count(&mut client), 4, "{profile}");
        client.card.reset();
        client.select(&echo::AID, BASIC);
        assert_eq!(count(&mut client), 0);
    }
}

#[test]
fn t1_answers_never_exceed_le() {
    let mut client = Client::new("default");
    client.select(&echo::AID, BASIC);
    let pattern = |length: u16| {
        let [p1, p2] = length.to_be_bytes();
        [0, echo::INS_PATTERN, p1, p2]
    };
    assert_eq!(
        client.send(BASIC, pattern(10), &[], Some(9)),
        status(0x6C0A)
    );
    assert_eq!(
        client.send(BASIC, pattern(256), &[], Some(255)),
        status(0x6C00)
    );
    assert_eq!(
        client.send(BASIC, pattern(257), &[], Some(256)),
        status(0x6700)
    );
    assert_eq!(client.send(BASIC, pattern(10), &[], None), ok(&[]));
}

#[test]
fn t0_tpdus() {
    let mut card = VirtualCard::from_profile("t0").unwrap();
    let mut send = |bytes: &[u8]| card.transmit(bytes);
    let select = [&[0, 0xA4, 4, 0, 8][..], &echo::AID].concat();
    // Nothing to fetch yet.
    assert_eq!(send(&[0, 0xC0, 0, 0, 5]), [0x69, 0x85]);
    assert_eq!(send(&select), [0x61, 12]);
    assert_eq!(send(&[0, 0xC0, 0, 0, 0]), [0x6C, 12]);
    let fci = send(&[0, 0xC0, 0, 0, 12]);
    assert_eq!(
        (&fci[..4], &fci[12..]),
        (&[0x6F, 10, 0x84, 8][..], &[0x90, 0][..])
    );
    // Another command in between loses the response.
    assert_eq!(send(&[0, 0x10, 0, 0, 2, 8, 9]), [0x61, 2]);
    assert_eq!(send(&[0, 0x12, 1, 2, 2]), [1, 2, 0x90, 0]);
    assert_eq!(send(&[0, 0xC0, 0, 0, 2]), [0x69, 0x85]);
    // In parts, as long as the caller likes.
    assert_eq!(send(&[0, 0x10, 0, 0, 3, 7, 8, 9]), [0x61, 3]);
    assert_eq!(send(&[0, 0xC0, 0, 0, 1]), [7, 0x61, 2]);
    assert_eq!(send(&[0, 0xC0, 0, 0, 2]), [8, 9, 0x90, 0]);
    // The wrong length.
    assert_eq!(send(&[0, 0x12, 1, 2, 0]), [0x6C, 2]);
    assert_eq!(send(&[0, 0x12, 1, 2, 2]), [1, 2, 0x90, 0]);
    assert_eq!(send(&[0, 0x10, 0, 0, 3, 7, 8]), [0x67, 0]);
    assert_eq!(send(&[0, 0x10, 0]), [0x67, 0]);
    // A reader may send case 1 without P3.
    assert_eq!(send(&[0, 0x70, 0x40, 0]), [0x90, 0]);
    // GET RESPONSE on another channel.
    assert_eq!(send(&select), [0x61, 12]);
    assert_eq!(send(&[1, 0xC0, 0, 0, 12]), [0x69, 0x85]);
}

#[test]
fn refusals() {
    let mut card = VirtualCard::from_profile("default").unwrap();
    let mut send = |bytes: &[u8]| card.transmit(bytes);
    for (command, sw) in [
        (&[][..], 0x6700_u16),
        (&[0, 0x10, 0, 0, 5, 1], 0x6700),
        (&[0x20, 0x10, 0, 0], 0x6E00),
        (&[0xFF, 0x10, 0, 0], 0x6E00),
        (&[0xA0, 0x10, 0, 0], 0x6E00),
        (&[0x01, 0x10, 0, 0], 0x6881),
        (&[0x4F, 0x10, 0, 0], 0x6881),
        (&[0x10, 0x10, 0, 0], 0x6884),
        (&[0x0C, 0x10, 0, 0], 0x6882),
        (&[0x84, 0x10, 0, 0], 0x6882),
        (&[0x00, 0x10, 0, 0], 0x6D00),
        // MANAGE CHANNEL: a number of one's own, no Le, data, the basic channel, no such channel.
        (&[0x00, 0x70, 0x00, 0x01, 0x01], 0x6A86),
        (&[0x00, 0x70, 0x00, 0x00], 0x6700),
        (&[0x00, 0x70, 0x00, 0x00, 0x01, 0x01], 0x6700),
        (&[0x00, 0x70, 0x80, 0x00], 0x6A86),
        (&[0x00, 0x70, 0x80, 0x14], 0x6A86),
        (&[0x00, 0x70, 0x80, 0x02], 0x6200),
        (&[0x00, 0x70, 0x20, 0x00], 0x6A86),
        // As careless as real cards about the class.
        (&[0x80, 0x70, 0x40, 0x00], 0x9000),
        (&[0x80, 0xA4, 0x04, 0x00, 5, 1, 2, 3, 4, 5, 0], 0x6A82),
    ] {
        assert_eq!(send(command), sw.to_be_bytes(), "{command:02X?}");
    }
}

#[test]
fn delays_are_what_was_asked_for() {
    let mut client = Client::new("default");
    client.select(&echo::AID, BASIC);
    let start = std::time::Instant::now();
    let answer = client.send(BASIC, [0, echo::INS_DELAY, 0, 5], &[1], Some(256));
    assert!(start.elapsed() >= std::time::Duration::from_millis(50));
    assert_eq!(answer, ok(&[1]));
}
