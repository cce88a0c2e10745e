/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reading the access rule files of a UICC.

use std::collections::BTreeMap;

use proptest::prelude::*;
use secure_element::access::{
    Access, AppId, ArfReader, ArfStep, Closed, DirectoryEntry, DirectoryReader, DirectoryStep,
    GPAC_ARF_AID, MAX_BYTES, MAX_RULES, Outcome, PKCS15_AID, RefreshTag, RulesError, Target,
};
use secure_element::apdu::{CommandApdu, ResponseApdu, StatusWord};
use secure_element::channel::Aid;
use secure_element::class_byte::ChannelNumber;

use crate::{S1, S2, X, Y, aid, app, header, hex, tlv};

/// Contents by file identifier.
pub(crate) type Files = BTreeMap<u16, Vec<u8>>;

/// An EF.DODF that names a main file.
pub(crate) fn dodf(main: u16) -> Vec<u8> {
    let path = tlv(0x30, &tlv(0x04, &main.to_be_bytes()));
    let oid = hex("060A 2A864886FC6B81480101");
    let object = tlv(0xA1, &tlv(0x30, &[oid, path].concat()));
    tlv(
        0xA1,
        &[hex("3000 300F 0C0D47502053452041636320 43746C"), object].concat(),
    )
}

pub(crate) fn read(files: &Files, known: Option<RefreshTag>) -> Outcome {
    Card::new(files.clone()).read(known)
}

/// How the sizes of files are told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    /// In the answer to SELECT, exactly.
    Exact,
    /// In the answer to SELECT; the files are longer than their content.
    Padded(u8),
    /// Not at all: the card answers 6B00 behind the end, or 6282 and what there is.
    Untold { warns: bool },
}

/// A card with files in one application.
struct Card {
    files: Files,
    sizes: Sizes,
    aid: Option<[u8; 12]>,
    /// The records of EF.DIR, if it is there.
    directory: Option<Vec<Vec<u8>>>,
    /// The path of the application's DF.
    df: Vec<u8>,
    /// The longest block.
    block: usize,
    in_application: bool,
    selected: Option<u16>,
    commands: Vec<Vec<u8>>,
}

const DIRECTORY: u16 = 0x2F00;

impl Card {
    fn new(files: Files) -> Self {
        Self {
            files,
            sizes: Sizes::Exact,
            aid: Some(PKCS15_AID),
            directory: None,
            df: hex("7F50"),
            block: 256,
            in_application: false,
            selected: None,
            commands: Vec::new(),
        }
    }

    fn content(&self, file: u16) -> Option<Vec<u8>> {
        let mut content = self.files.get(&file)?.clone();
        if let Sizes::Padded(byte) = self.sizes {
            content.extend([byte; 37]);
        }
        Some(content)
    }

    fn transmit(&mut self, command: &CommandApdu) -> ResponseApdu {
        self.commands.push(command.encode());
        let header = command.header();
        assert_eq!(header.cla, 0x02);
        match header.ins {
            0xA4 => self.select(header.p1, header.p2, command.data()),
            0xB0 => {
                let Some(content) = self.selected.and_then(|file| self.content(file)) else {
                    return StatusWord(0x6986).into();
                };
                let offset = usize::from(u16::from_be_bytes([header.p1, header.p2]));
                let le = command.le().unwrap() as usize;
                let Some(rest) = content.get(offset..).filter(|rest| !rest.is_empty()) else {
                    return match self.sizes {
                        Sizes::Untold { warns: true } => StatusWord(0x6282).into(),
                        _ => StatusWord(0x6B00).into(),
                    };
                };
                let block = rest[..rest.len().min(le).min(self.block)].to_vec();
                let ends = rest.len() < le && rest.len() == block.len();
                let is_short = ends && self.sizes == Sizes::Untold { warns: true };
                let status = if is_short { 0x6282 } else { 0x9000 };
                ResponseApdu::new(block, StatusWord(status))
            }
            0xB2 => {
                assert_eq!((self.selected, header.p2), (Some(DIRECTORY), 0x04));
                let records = self.directory.as_ref().unwrap();
                match records.get(usize::from(header.p1) - 1) {
                    Some(record) => ResponseApdu::new(record.clone(), StatusWord::OK),
                    None => StatusWord(0x6A83).into(),
                }
            }
            other => panic!("{other:02X}"),
        }
    }

    fn select(&mut self, p1: u8, p2: u8, data: &[u8]) -> ResponseApdu {
        assert_eq!(p2, if p1 == 0x04 { 0x00 } else { 0x04 });
        let not_found = StatusWord::NOT_FOUND.into();
        let file = match p1 {
            0x04 => {
                if self.aid.as_ref().is_none_or(|aid| aid != data) {
                    return not_found;
                }
                self.in_application = true;
                return ResponseApdu::new(hex("6200"), StatusWord::OK);
            }
            0x08 if data == [0x2F, 0x00] => {
                if self.directory.is_none() {
                    return not_found;
                }
                self.selected = Some(DIRECTORY);
                return ResponseApdu::new(hex("6200"), StatusWord::OK);
            }
            0x08 if data == self.df => {
                self.in_application = true;
                return ResponseApdu::new(hex("6200"), StatusWord::OK);
            }
            0x08 => data.strip_prefix(&self.df[..]),
            0x00 | 0x09 if self.in_application => Some(data),
            _ => None,
        };
        let Some(Ok(file)) = file.map(|file| file.try_into().map(u16::from_be_bytes)) else {
            return not_found;
        };
        let Some(content) = self.content(file) else {
            return not_found;
        };
        self.selected = Some(file);
        let size = tlv(0x80, &(content.len() as u16).to_be_bytes());
        let template = match self.sizes {
            Sizes::Untold { .. } => tlv(0x62, &hex("8202 4121")),
            _ => tlv(0x62, &[hex("8202 4121"), size, hex("8800")].concat()),
        };
        ResponseApdu::new(template, StatusWord::OK)
    }

    fn read(&mut self, known: Option<RefreshTag>) -> Outcome {
        let mut step = ArfReader::start(ChannelNumber::new(2).unwrap(), known);
        loop {
            step = match step {
                ArfStep::Send(reader, command) => reader.receive(&self.transmit(&command)),
                ArfStep::Done(outcome) => return outcome,
            };
        }
    }
}

const TAG: RefreshTag = RefreshTag([1, 2, 3, 4, 5, 6, 7, 8]);

/// X may use the first application; the conditions are in 4310.
fn files() -> Files {
    BTreeMap::from([
        (0x5031, hex("A506 3004 0402 5206  A706 3004 0402 5207")),
        (0x5207, dodf(0x4200)),
        (0x4200, hex("3010 0408 0102030405060708 3004 0402 4300")),
        (0x4300, hex("3010 A008 0406 A00000015101 3004 0402 4310")),
        (0x4310, tlv(0x30, &tlv(0x04, &[X; 20]))),
    ])
}

fn with(file: u16, content: &str) -> Files {
    let mut files = files();
    files.insert(file, hex(content));
    files
}

fn access(outcome: &Outcome, name: &[u8], app: &AppId) -> Access {
    let Outcome::Rules { rules, .. } = outcome else {
        panic!("{outcome:?}");
    };
    rules.channel_access(Target::Application(aid(name)), app)
}

fn is_right(outcome: &Outcome) -> bool {
    access(outcome, &S1, &app(X)) == Access::Always
        && !access(outcome, &S1, &app(Y)).allows_channel()
        && !access(outcome, &S2, &app(X)).allows_channel()
}

fn closed(files: &Files) -> Closed {
    match read(files, None) {
        Outcome::Closed(closed) => closed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_commands() {
    let mut card = Card::new(files());
    let outcome = card.read(None);
    assert!(is_right(&outcome));
    assert!(matches!(
        outcome,
        Outcome::Rules {
            refresh_tag: TAG,
            ..
        }
    ));
    let expected = [
        "02A404000CA000000063504B43532D313500",
        "02A4000402503100",
        "02B0000010",
        "02A4000402520700",
        "02B000002B",
        "02A4000402420000",
        "02B0000012",
        "02A4000402430000",
        "02B0000012",
        "02A4000402431000",
        "02B0000018",
    ];
    assert_eq!(card.commands, expected.map(hex));
}

#[test]
fn files_of_any_length_told_in_any_way() {
    let many = (0..=40_u8)
        .filter(|hash| *hash != Y)
        .flat_map(|hash| tlv(0x30, &tlv(0x04, &[hash; 20])));
    let mut files = files();
    files.insert(0x4310, many.collect());
    for sizes in [
        Sizes::Exact,
        Sizes::Padded(0xFF),
        Sizes::Padded(0x00),
        Sizes::Untold { warns: false },
        Sizes::Untold { warns: true },
    ] {
        for block in [1, 7, 255, 256] {
            let mut card = Card::new(files.clone());
            (card.sizes, card.block) = (sizes, block);
            let outcome = card.read(None);
            // With one byte a block it takes more commands than there may be, if the end is not told.
            if let Outcome::Closed(closed) = outcome {
                assert_eq!((closed, block), (Closed::TooManyCommands, 1));
                continue;
            }
            assert!(is_right(&outcome), "{sizes:?} {block}");
        }
    }
}

#[test]
fn the_refresh_tag() {
    let mut card = Card::new(files());
    assert!(matches!(card.read(Some(TAG)), Outcome::Unchanged));
    assert_eq!(card.commands.len(), 7);
    let other = RefreshTag([8; 8]);
    assert!(is_right(&Card::new(files()).read(Some(other))));
    for main in [
        "300F 0407 01020304050607 3004 0402 4300",
        "3011 0409 010203040506070809 3004 0402 4300",
    ] {
        assert_eq!(closed(&with(0x4200, main)), Closed::RefreshTag);
    }
}

#[test]
fn the_other_application() {
    let mut card = Card::new(files());
    card.aid = Some(GPAC_ARF_AID);
    assert!(is_right(&card.read(None)));
    assert_eq!(
        card.commands[1],
        hex("02A404000CA0000000184750 41432D313500")
    );
}

#[test]
fn an_application_that_only_ef_dir_names() {
    let usim = hex("610B 4F09 A0000000871002FF33 FFFFFF");
    let pkcs15 = tlv(
        0x61,
        &[
            tlv(0x4F, &PKCS15_AID),
            hex("5003 503135"),
            tlv(0x51, &hex("3F007F50")),
        ]
        .concat(),
    );
    let record = |mut record: Vec<u8>| {
        record.extend([0xFF; 8]);
        record
    };
    let mut card = Card::new(files());
    card.aid = None;
    card.directory = Some(vec![usim.clone(), vec![0xFF; 40], record(pkcs15.clone())]);
    assert!(is_right(&card.read(None)));
    assert_eq!(card.commands[2], hex("02A40804022F0000"));
    assert_eq!(card.commands[3], hex("02B2010400"));
    assert_eq!(card.commands[5], hex("02B2030400"));
    assert_eq!(card.commands[6], hex("02A40804027F5000"));

    // Not there, or without a path.
    let without_path = tlv(0x61, &tlv(0x4F, &PKCS15_AID));
    for records in [
        vec![],
        vec![usim.clone()],
        vec![without_path],
        vec![usim; 70],
    ] {
        let mut card = Card::new(files());
        card.aid = None;
        card.directory = Some(records);
        assert!(matches!(card.read(None), Outcome::NoRules));
        assert!(card.commands.len() <= 3 + 64);
    }
    // A path that is none.
    let mut card = Card::new(files());
    card.aid = None;
    card.directory = Some(vec![tlv(
        0x61,
        &[tlv(0x4F, &PKCS15_AID), hex("5103 3F007F")].concat(),
    )]);
    assert!(matches!(
        card.read(None),
        Outcome::Closed(Closed::MalformedFile)
    ));
    // A DF that is not there.
    let mut card = Card::new(files());
    card.aid = None;
    card.directory = Some(vec![pkcs15]);
    card.df = hex("7F51");
    let outcome = card.read(None);
    assert!(matches!(
        outcome,
        Outcome::Closed(Closed::Status(StatusWord::NOT_FOUND))
    ));
    assert_eq!(card.commands.len(), 5);
}

#[test]
fn records_of_ef_dir() {
    let entry =
        DirectoryEntry::parse(&hex("6110 4F07 A0000000871002 5000 5103 3F007F FFFF")).unwrap();
    assert_eq!(
        (entry.aid.len(), entry.path.as_deref()),
        (7, Some(&[0x3F, 0, 0x7F][..]))
    );
    assert!(entry.is_of_uicc());
    let is_of_uicc = |aid: &str| {
        let record = tlv(0x61, &tlv(0x4F, &hex(aid)));
        DirectoryEntry::parse(&record).unwrap().is_of_uicc()
    };
    assert!(is_of_uicc("A0000000871004FF33FF01890000010000"));
    assert!(is_of_uicc("A0000000871002FF49FF0589"));
    assert!(!is_of_uicc("A0000000871003"));
    assert!(!is_of_uicc("A000000063504B43532D3135"));
    assert!(!is_of_uicc("A0000000"));
    for record in [
        "",
        "FFFFFF",
        "0000",
        "6F02 4F00",
        "6102 5000",
        "6105 4F04 A00000",
        "61",
    ] {
        assert_eq!(DirectoryEntry::parse(&hex(record)), None, "{record}");
    }
}

/// What [`DirectoryReader`] finds out from these answers: status words behind data, in digits. Also how
/// many it has taken.
fn look(answers: &[&str]) -> (Result<bool, Closed>, usize) {
    let mut step = DirectoryReader::start(ChannelNumber::new(2).unwrap());
    let mut taken = 0;
    loop {
        let (reader, command) = match step {
            DirectoryStep::Send(reader, command) => (reader, command),
            DirectoryStep::Done(is_uicc) => return (Ok(is_uicc), taken),
            DirectoryStep::Closed(why) => return (Err(why), taken),
        };
        let expected = match taken {
            0 => hex("02 A4 08 04 02 2F00 00"),
            record => vec![0x02, 0xB2, record as u8, 0x04, 0x00],
        };
        assert_eq!(command.encode(), expected);
        let answer = answers.get(taken).or(answers.last()).unwrap();
        step = reader.receive(&ResponseApdu::parse(&hex(answer)).unwrap());
        taken += 1;
    }
}

#[test]
fn a_usim_or_an_isim_in_ef_dir_makes_a_uicc() {
    const PKCS15: &str = "610E 4F0C A000000063504B43532D3135 9000";
    const USIM: &str = "6109 4F07 A0000000871002 FFFF 9000";
    const ISIM: &str = "6109 4F07 A0000000871004 9000";
    for (answers, expected) in [
        (&["9000", USIM][..], (Ok(true), 2)),
        (&["6200 9000", PKCS15, "FFFF 9000", ISIM], (Ok(true), 4)),
        // A warning is no failure.
        (&["6283", "6109 4F07 A0000000871002 6282"], (Ok(true), 2)),
        (&["9000", PKCS15, "6A83"], (Ok(false), 3)),
        (&["9000", "6A83"], (Ok(false), 2)),
        // A card that has no end of records.
        (&["9000", PKCS15], (Ok(false), 65)),
        // No such file, none of records, none for everybody.
        (&["6A82"], (Ok(false), 1)),
        (&["6D00"], (Ok(false), 1)),
        (&["6F00"], (Ok(false), 1)),
        (&["9000", "6981"], (Ok(false), 2)),
        (&["9000", "6982"], (Ok(false), 2)),
        (&["9000", "6D00"], (Ok(false), 2)),
        (&["9000", "9404"], (Ok(false), 2)),
    ] {
        assert_eq!(look(answers), expected, "{answers:?}");
    }
    // It is there, and cannot be read.
    for status in [0x6400, 0x6581, 0x6600, 0x6F00] {
        let closed = Closed::Status(StatusWord(status));
        let answer = format!("{status:04X}");
        assert_eq!(look(&["9000", &answer]), (Err(closed), 2));
    }
}

#[test]
fn no_application_no_directory_or_no_entry_are_no_rules() {
    let mut card = Card::new(files());
    card.aid = None;
    assert!(matches!(card.read(None), Outcome::NoRules));
    for (file, content) in [
        (0x5031, ""),
        (0x5031, "A506 3004 0402 5207"),
        (0x5207, ""),
        (0x5207, "A000"),
        (
            0x5207,
            "A115 3000 3000 A10F 300D 0605 2A03040506 3004 0402 4200",
        ),
    ] {
        assert!(
            matches!(read(&with(file, content), None), Outcome::NoRules),
            "{content}"
        );
    }
}

#[test]
fn files_that_are_not_there_close_the_element() {
    for file in [0x5031, 0x5207, 0x4200, 0x4300, 0x4310] {
        let mut files = files();
        files.remove(&file);
        assert_eq!(
            closed(&files),
            Closed::Status(StatusWord::NOT_FOUND),
            "{file:04X}"
        );
    }
}

#[test]
fn several_main_files_close_the_element() {
    let twice = dodf(0x4200).repeat(2);
    let mut files = files();
    files.insert(0x5207, twice);
    assert_eq!(closed(&files), Closed::SeveralMainFiles);
    // In two directory files.
    files.insert(0x5031, hex("A706 3004 0402 5207 A706 3004 0402 5208"));
    files.insert(0x5207, dodf(0x4200));
    files.insert(0x5208, dodf(0x4200));
    assert_eq!(closed(&files), Closed::SeveralMainFiles);
    // The other one may be about something else, whatever the order.
    for (main, other) in [(0x5207, 0x5208), (0x5208, 0x5207)] {
        files.insert(main, dodf(0x4200));
        files.insert(other, hex("A000"));
        assert!(is_right(&read(&files, None)));
    }
}

#[test]
fn malformed_files_close_the_element() {
    for (file, content) in [
        (0x5031, "A702 0402"),
        (0x5031, "A704 0402 5207"),
        (0x5031, "A705 3003 0401 52"),
        (0x5031, "A704 3002 0400"),
        (0x5031, "A7"),
        (
            0x5031,
            "A716 3014 0412 3F003F003F003F003F003F003F003F003F00",
        ),
        (0x5207, "A102 3000"),
        (0x5207, "A104 3000 3000"),
        (0x5207, "A106 3000 3000 3000"),
        (0x5207, "A106 3000 3000 A100"),
        (0x4200, ""),
        (0x4200, "3110 0408 0102030405060708 3004 0402 4300"),
        (0x4200, "300A 0408 0102030405060708"),
        (0x4200, "3010 0408 0102030405060708 3004 0402"),
        (0x4300, "3000"),
        (0x4300, "3108 8200 3004 0402 4310"),
        (0x4300, "3002 8200"),
        (0x4300, "3008 8300 3004 0402 4310"),
        (0x4300, "3009 820100 3004 0402 4310"),
        (0x4300, "3009 810100 3004 0402 4310"),
        (0x4300, "300A 8200 3004 0402 4310 0500"),
        (0x4300, "300E A006 0404 A0000001 3004 0402 4310"),
        (0x4300, "300A A002 0400 3004 0402 4310"),
        (0x4300, "3012 A00A 0406 A00000015101 0500 3004 0402 4310"),
        (0x4300, "3008 8200 3004 0402 4310 01"),
        (0x4310, "3003 0401 11"),
        (0x4310, "3100"),
        (0x4310, "3002 A000"),
        (0x4310, "3002 0500"),
        (0x4310, "3007 A105 A003 800101"),
        (0x4310, "3004 0400 0500"),
        (0x4310, "3007 A005 A103 800102"),
        (0x4310, "3009 A007 A105 800101 0500"),
        (0x4310, "3006 A004 A102 8000"),
        (0x4310, "3007 A005 A003 800102"),
        (0x4310, "3008 A006 A004 80020101"),
        (0x4310, "3009 A007 A005 800101 0500"),
        (0x4310, "3007 A005 A203 800101"),
        (0x4310, "300C A00A A003800101 A003800101"),
        (0x4310, "300C A00A A103800101 A103800101"),
        (0x4310, "3006 A004 A002 A100"),
        (0x4310, "3006 A004 A002 8200"),
        (0x4310, "300F A00D A00B A109 0407 00B00000FFFF00"),
        (0x4310, "3010 A00E A00C A10A 0508 00B00000FFFF0000"),
        (0x4310, "3009 A005 A003 800101 0500"),
        (0x4310, "FF30"),
        (0x4310, "3000 00 30"),
    ] {
        let closed = closed(&with(file, content));
        assert_eq!(closed, Closed::MalformedFile, "{file:04X} {content}");
    }
}

#[test]
fn conditions() {
    let access =
        |condition: &str, origin| access(&read(&with(0x4310, condition), None), &S1, &app(origin));
    let x = "0414 1111111111111111111111111111111111111111";
    let x256 = "0420 1111111111111111111111111111111111111111111111111111111111111111";
    assert_eq!(access(&format!("3016 {x}"), X), Access::Always);
    assert_eq!(access(&format!("3022 {x256}"), X), Access::Always);
    assert!(!access(&format!("3022 {x256}"), Y).allows_channel());
    assert!(!access("", X).allows_channel());
    assert_eq!(access("3000", X), Access::Always);
    assert_eq!(access("3002 0400", X), Access::Always);
    assert!(!access("3007 A005 A003 800100", X).allows_channel());
    assert_eq!(access("3007 A005 A003 800101", X), Access::Always);
    assert_eq!(access("300C A00A A103800100 A003800101", X), Access::Always);
    assert_eq!(access("3007 A005 A103 800100", X), Access::Always);
    // Without a hash it is for everybody, whoever the condition before was for.
    assert!(!access(&format!("3016 {x} 3000"), Y).allows_channel());
    assert_eq!(access(&format!("3016 {x} 3000"), X), Access::Always);
    let read_only = access("3010 A00E A00C A10A 0408 00B00000FFFF0000", X);
    assert!(read_only.allows_command(header(0x00B0_0000)));
    assert!(!read_only.allows_command(header(0x00D6_0000)));
}

#[test]
fn targets() {
    let condition = tlv(0x30, &tlv(0x04, &[X; 20]));
    let with_rules = |acrules: &str| {
        let mut files = with(0x4300, acrules);
        files.insert(0x4311, condition.clone());
        match read(&files, None) {
            Outcome::Rules { rules, .. } => rules,
            other => panic!("{other:?}"),
        }
    };
    let implicit = with_rules("3008 8100 3004 0402 4310");
    assert_eq!(
        implicit.channel_access(Target::Implicit, &app(X)),
        Access::Always
    );
    let name = |name: &[u8]| Target::Application(Aid::new(name).unwrap());
    assert!(!implicit.channel_access(name(&S1), &app(X)).allows_channel());
    let all = with_rules("3008 8200 3004 0402 4310");
    assert_eq!(all.channel_access(name(&S1), &app(X)), Access::Always);
    let both = with_rules(
        "3010 A008 0406 A00000015101 3004 0402 4310  3010 A008 0406 A00000015102 3004 0402 4311",
    );
    assert_eq!(both.channel_access(name(&S2), &app(X)), Access::Always);
    assert!(with_rules("").is_empty());
}

#[test]
fn paths_of_every_kind() {
    for path in ["0402 4310", "0406 3F007F504310", "0402 4310 020100 800102"] {
        let path = tlv(0x30, &hex(path));
        let target = hex("A008 0406 A00000015101");
        let mut files = files();
        files.insert(0x4300, tlv(0x30, &[target, path].concat()));
        assert!(is_right(&read(&files, None)));
    }
    // From the application's DF downwards.
    let files = with(0x4300, "3012 A008 0406 A00000015101 3006 0404 50004310");
    let mut card = Card::new(files);
    assert!(matches!(card.read(None), Outcome::Closed(_)));
    assert_eq!(card.commands.last(), Some(&hex("02A409040450004310 00")));
}

/// What becomes of a file of 8 bytes if the card answers its reading so.
fn after_reading(data: &str, status: u16) -> ArfStep {
    let mut step = ArfReader::start(ChannelNumber::BASIC, None);
    let answers = [
        (hex("6200"), 0x9000),
        (hex("6204 8002 0008"), 0x9000),
        (hex(data), status),
    ];
    for (data, status) in answers {
        let ArfStep::Send(reader, _) = step else {
            panic!("it ended");
        };
        step = reader.receive(&ResponseApdu::new(data, StatusWord(status)));
    }
    step
}

#[test]
fn files_shorter_than_announced_close_the_element() {
    for (data, status) in [("A706 3004 0402 52", 0x6282), ("", 0x6B00), ("", 0x9000)] {
        let step = after_reading(data, status);
        assert!(
            matches!(step, ArfStep::Done(Outcome::Closed(Closed::Length))),
            "{step:?}"
        );
    }
    // Complete, or to be read on.
    for (data, status, next) in [
        ("A706 3004 0402 5207", 0x9000, "00A4000402520700"),
        ("A706 3004 0402 5207", 0x6282, "00A4000402520700"),
        ("A706 3004 0402 52", 0x9000, "00B0000701"),
    ] {
        let ArfStep::Send(_, command) = after_reading(data, status) else {
            panic!("it ended");
        };
        assert_eq!(command.encode(), hex(next));
    }
}

#[test]
fn sizes_of_files() {
    for (answer, le) in [
        ("6204 8002 0008", 8),
        ("6F04 8002 0008", 8),
        ("6203 8001 08", 8),
        ("6206 8004 00000008", 8),
        ("6208 8202 4121 8002 0008", 8),
        ("6204 8002 0108", 256),
        ("6206 8004 00000108", 256),
        // Not told, or not so that it can be understood.
        ("", 256),
        ("6200", 256),
        ("6404 8002 0008", 256),
        ("6202 8000", 256),
        ("6207 8005 0000000008", 256),
        ("6204 8002 0008 00", 256),
    ] {
        let mut step = ArfReader::start(ChannelNumber::BASIC, None);
        for data in ["6200", answer] {
            let ArfStep::Send(reader, _) = step else {
                panic!("it ended");
            };
            step = reader.receive(&ResponseApdu::new(hex(data), StatusWord::OK));
        }
        let ArfStep::Send(_, command) = step else {
            panic!("{answer}: it ended");
        };
        assert_eq!(command.le(), Some(le), "{answer}");
        assert_eq!(command.header(), header(0x00B0_0000));
    }
    // A file without content is not read.
    let mut step = ArfReader::start(ChannelNumber::BASIC, None);
    for data in ["6200", "6204 8002 0000"] {
        let ArfStep::Send(reader, _) = step else {
            panic!("it ended");
        };
        step = reader.receive(&ResponseApdu::new(hex(data), StatusWord::OK));
    }
    assert!(matches!(step, ArfStep::Done(Outcome::NoRules)));
}

#[test]
fn more_than_was_asked_for_closes_the_element() {
    let ArfStep::Send(reader, _) = ArfReader::start(ChannelNumber::BASIC, None) else {
        panic!("it ended");
    };
    let ok = |data: &str| ResponseApdu::new(hex(data), StatusWord::OK);
    let ArfStep::Send(reader, _) = reader.receive(&ok("6200")) else {
        panic!("it ended");
    };
    let ArfStep::Send(reader, command) = reader.receive(&ok("6204 8002 0002")) else {
        panic!("it ended");
    };
    assert_eq!(command.le(), Some(2));
    let step = reader.receive(&ok("A70000"));
    assert!(
        matches!(step, ArfStep::Done(Outcome::Closed(Closed::Length))),
        "{step:?}"
    );
}

#[test]
fn status_words_close_the_element() {
    // At each command in turn, a status word that has no meaning there.
    for at in 0..11 {
        let mut card = Card::new(files());
        let mut step = ArfReader::start(ChannelNumber::new(2).unwrap(), None);
        let mut sent = 0;
        while let ArfStep::Send(reader, command) = step {
            let mut response = card.transmit(&command);
            if sent == at {
                response = StatusWord(0x6985).into();
            }
            sent += 1;
            step = reader.receive(&response);
        }
        let ArfStep::Done(Outcome::Closed(closed)) = step else {
            panic!("{step:?}");
        };
        assert_eq!((closed, sent), (Closed::Status(StatusWord(0x6985)), at + 1));
    }
}

#[test]
fn files_are_bounded() {
    let mut files = files();
    // As long as one can be: padding is bytes too.
    let mut long = files[&0x4310].clone();
    long.resize(0x8000, 0xFF);
    files.insert(0x4310, long.clone());
    assert!(is_right(&read(&files, None)));
    long.push(0xFF);
    files.insert(0x4310, long);
    let mut card = Card::new(files.clone());
    assert!(matches!(card.read(None), Outcome::Closed(Closed::TooLong)));
    // Not even begun.
    assert_eq!(card.commands.last(), Some(&hex("02A4000402431000")));
    let mut card = Card::new(files);
    card.sizes = Sizes::Untold { warns: false };
    assert!(matches!(card.read(None), Outcome::Closed(Closed::TooLong)));
}

#[test]
fn all_files_together_are_bounded() {
    let mut files = files();
    let entry = |last: u8, file: &str| {
        hex(&format!(
            "3010 A008 0406 A000000151{last:02X} 3004 0402 {file}"
        ))
    };
    files.insert(
        0x4300,
        [entry(1, "4310"), entry(2, "4311"), entry(3, "4312")].concat(),
    );
    let mut condition = files[&0x4310].clone();
    condition.resize(0x7800, 0xFF);
    for file in [0x4310, 0x4311, 0x4312] {
        files.insert(file, condition.clone());
    }
    assert_eq!(closed(&files), Closed::TooLong);
    let others = 16 + 43 + 18 + 3 * 18 + 2 * 0x7800;
    condition.truncate(MAX_BYTES - others);
    files.insert(0x4312, condition.clone());
    assert!(matches!(read(&files, None), Outcome::Rules { .. }));
    condition.push(0xFF);
    files.insert(0x4312, condition);
    assert_eq!(closed(&files), Closed::TooLong);
}

#[test]
fn rules_do_not_multiply() {
    let mut files = files();
    let entries = |count: u16| -> Vec<u8> {
        (0..count)
            .flat_map(|number| {
                let aid = [&S1[..], &number.to_be_bytes()].concat();
                let aid = tlv(0xA0, &tlv(0x04, &aid));
                tlv(0x30, &[aid, hex("3004 0402 4310")].concat())
            })
            .collect()
    };
    files.insert(0x4300, entries(1024));
    files.insert(0x4310, hex("3000").repeat(MAX_RULES / 1024));
    assert!(matches!(read(&files, None), Outcome::Rules { .. }));
    files.insert(0x4310, hex("3000").repeat(MAX_RULES / 1024 + 1));
    assert_eq!(closed(&files), RulesError::TooMany.into());
    // Each filter counts as well.
    let filters = |count: usize| {
        let filters = tlv(0xA1, &hex("0408 00B00000FFFF0000").repeat(count));
        tlv(0x30, &tlv(0xA0, &tlv(0xA0, &filters)))
    };
    files.insert(0x4310, filters(MAX_RULES / 1024 - 1));
    assert!(matches!(read(&files, None), Outcome::Rules { .. }));
    files.insert(0x4310, filters(MAX_RULES / 1024));
    assert_eq!(closed(&files), RulesError::TooMany.into());
}

#[test]
fn the_commands_are_bounded() {
    let mut card = Card::new(files());
    card.files.get_mut(&0x4310).unwrap().resize(0x2000, 0xFF);
    card.block = 4;
    assert!(matches!(
        card.read(None),
        Outcome::Closed(Closed::TooManyCommands)
    ));
    assert_eq!(card.commands.len(), 1100);
}

#[test]
fn conditions_are_read_once_for_many_applications() {
    let entry = |last: u8| {
        hex(&format!(
            "3010 A008 0406 A000000151{last:02X} 3004 0402 4310"
        ))
    };
    let mut files = files();
    files.insert(0x4300, (1..=9).flat_map(entry).collect());
    let mut card = Card::new(files);
    let outcome = card.read(None);
    assert_eq!(card.commands.len(), 11);
    for last in 1..=9 {
        let name = [&S1[..5], &[last]].concat();
        assert_eq!(access(&outcome, &name, &app(X)), Access::Always);
    }
}

proptest! {
    /// Whatever a card answers, reading ends.
    #[test]
    fn reading_ends(
        answers in proptest::collection::vec(
            (
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    Just(hex("6200")),
                    Just(hex("6204 8002 0010")),
                    Just(hex("A706 3004 0402 5207")),
                    Just(dodf(0x4200)),
                    Just(hex("3010 0408 0102030405060708 3004 0402 4300")),
                    Just(hex("3010 A008 0406 A00000015101 3004 0402 4310")),
                    Just(hex("3000")),
                ],
                prop_oneof![8 => Just(0x9000_u16), 1 => Just(0x6282), 1 => Just(0x6A82), 1 => any::<u16>()],
            ),
            1..30,
        ),
    ) {
        let mut answers = answers.iter().cycle();
        let mut step = ArfReader::start(ChannelNumber::BASIC, None);
        let mut commands = 0;
        while let ArfStep::Send(reader, _) = step {
            commands += 1;
            prop_assert!(commands <= 1100);
            let (data, status) = answers.next().unwrap();
            step = reader.receive(&ResponseApdu::new(data.clone(), StatusWord(*status)));
        }
    }

    /// Whatever is wrong with one byte of one file, the result is some decision.
    #[test]
    fn damaged_files(file in 0..5_usize, at in 0..43_usize, byte: u8) {
        let mut files = files();
        let key = *files.keys().nth(file).unwrap();
        let content = files.get_mut(&key).unwrap();
        let at = at % content.len();
        content[at] = byte;
        let _ = read(&files, None);
    }

    /// Whatever EF.DIR is, looking at it ends, and a UICC has said that it is one.
    #[test]
    fn looking_at_ef_dir_ends(
        answers in proptest::collection::vec(
            (
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    Just(hex("6109 4F07 A0000000871002")),
                    Just(hex("6109 4F07 A0000000871003")),
                ],
                prop_oneof![8 => Just(0x9000_u16), 1 => any::<u16>()],
            ),
            1..80,
        ),
    ) {
        let usim = hex("A0000000871002");
        let isim = hex("A0000000871004");
        let mut all = answers.iter().cycle();
        let mut said = false;
        let mut commands = 0;
        let mut step = DirectoryReader::start(ChannelNumber::BASIC);
        while let DirectoryStep::Send(reader, _) = step {
            commands += 1;
            prop_assert!(commands <= 65);
            let (data, status) = all.next().unwrap();
            said |= data.windows(7).any(|part| part == usim || part == isim);
            step = reader.receive(&ResponseApdu::new(data.clone(), StatusWord(*status)));
        }
        prop_assert!(said || !matches!(step, DirectoryStep::Done(true)));
    }
}
