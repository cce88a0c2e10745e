/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Nitrokey's OpenPGP application behind a real `pcscd`, recognised by OpenSC.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nitrokey_card::OpenPgpCard;
use virtual_card::Card;
use virtual_card::test_support::Pcscd;

/// SELECT of the application by its partial AID (OpenPGP card 3.4 section 7.2.1).
const SELECT: &[u8] = b"\x00\xA4\x04\x00\x06\xD2\x76\x00\x01\x24\x01\x00";
/// GET DATA of the whole AID.
const GET_AID: &[u8] = b"\x00\xCA\x00\x4F\x00";

#[test]
fn it_answers_as_the_specification_says() {
    let mut card = OpenPgpCard::new().unwrap();
    card.reset();
    assert_eq!(card.transmit(GET_AID), [0x69, 0x85], "nothing is selected");
    assert_eq!(card.transmit(SELECT), [0x90, 0x00]);
    let aid = card.transmit(GET_AID);
    assert!(
        aid.starts_with(&[0xD2, 0x76, 0x00, 0x01, 0x24, 0x01]),
        "{aid:02X?}"
    );
    assert_eq!(aid.len(), 18);
    assert!(aid.ends_with(&[0x90, 0x00]));
    // VERIFY of the signature PIN.
    assert_eq!(card.transmit(b"\x00\x20\x00\x81\x06123456"), [0x90, 0x00]);
    assert_eq!(card.transmit(b"\x00\x20\x00\x81"), [0x90, 0x00]);
    card.reset();
    assert_eq!(card.transmit(SELECT), [0x90, 0x00]);
    assert_eq!(card.transmit(b"\x00\x20\x00\x81"), [0x63, 0xC3]);
}

#[test]
fn opensc_knows_it_for_what_it_is() {
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, OpenPgpCard::new().unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Its own driver recognises the application, once pcscd has noticed the card.
    loop {
        let output = Command::new("opensc-tool")
            .args(["--reader", "0", "--name"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let name = String::from_utf8_lossy(&output.stdout);
        if name.contains("OpenPGP card") {
            break;
        }
        assert!(Instant::now() < deadline, "{name}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
