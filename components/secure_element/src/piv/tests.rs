/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use proptest::prelude::*;

use super::data::{ApplicationProperties, Chuid, Discovery, certificate, with_certificate};
use super::dialogue::{Dialogue, MAX_COMMANDS, Step, run};
use super::key::{PublicKey, ecdsa_input, plain_signature};
use super::*;
use crate::apdu::{CommandApdu, ResponseApdu};
use crate::class_byte::{ChannelNumber, channel_of};
use crate::tlv::{self, Tag};

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

/// Commands and answers, in hexadecimal digits.
fn play<T>(step: Step<T>, script: &[(&str, &str)]) -> Result<T, PivError> {
    let mut script = script.iter();
    let outcome = run(step, |command| {
        let (sent, answer) = script.next().expect("nothing more is sent");
        assert_eq!(command.encode(), hex(sent), "instead of {sent}");
        Ok::<_, ()>(ResponseApdu::parse(&hex(answer)).unwrap())
    });
    assert_eq!(script.next(), None, "all is sent");
    outcome.unwrap()
}

const BASIC: ChannelNumber = ChannelNumber::BASIC;

#[test]
fn select_tells_the_properties() {
    let step = Dialogue::start(BASIC, |mut card| async move { card.select().await });
    let properties = play(
        step,
        &[(
            "00A4040009A0000003080000100000",
            "6128 4F06000010000100 7907 4F05A000000308 5003504956 AC0D 800111 80010A 80010C 800103 0600 9000",
        )],
    );
    // The template is cut off: what cannot be read is nothing.
    assert_eq!(properties, Ok(ApplicationProperties::default()));
    let template = "6126 4F06000010000100 7907 4F05A000000308 5003504956 AC0E 800111 80010A 80010C 800103 0600";
    assert_eq!(
        ApplicationProperties::parse(&hex(template)),
        Ok(ApplicationProperties {
            label: Some("PIV".into()),
            algorithms: vec![Algorithm::P256],
            management_algorithms: vec![
                ManagementAlgorithm::Aes192,
                ManagementAlgorithm::Aes256,
                ManagementAlgorithm::Tdes,
            ],
        })
    );
    for (answer, error) in [
        ("6A82", PivError::NoApplication),
        ("6999", PivError::NoApplication),
        ("6F00", PivError::Status(StatusWord(0x6F00))),
    ] {
        let step = Dialogue::start(BASIC, |mut card| async move { card.select().await });
        assert_eq!(
            play(step, &[("00A4040009A0000003080000100000", answer)]),
            Err(error)
        );
    }
}

#[test]
fn responses_in_parts_are_put_together_and_commands_are_chained() {
    let channel = ChannelNumber::new(5).unwrap();
    let get = |object| {
        Dialogue::start(channel, move |mut card| async move {
            card.get_data(object).await
        })
    };
    // Channel 5 is 41 in the class (ISO/IEC 7816-4 section 5.4.1).
    let script = [
        ("41CB3FFF055C035FC10200", "5304 0102 6102"),
        ("41C0000002", "0304 9000"),
    ];
    assert_eq!(play(get(Object::CHUID), &script), Ok(vec![1, 2, 3, 4]));
    // 6Cxx asks for the exact length.
    let script = [
        ("41CB3FFF035C017E00", "6C04"),
        ("41CB3FFF035C017E04", "7E02 AABB 9000"),
    ];
    assert_eq!(play(get(Object::DISCOVERY), &script), Ok(vec![0xAA, 0xBB]));
    // Not the object that was asked for.
    assert_eq!(
        play(
            get(Object::CHUID),
            &[("41CB3FFF055C035FC10200", "7E00 9000")]
        ),
        Err(PivError::Nonsense)
    );
    // A card that promises for ever, and one that never ends.
    let script = [("41CB3FFF055C035FC10200", "6110"), ("41C0000010", "6110")];
    assert_eq!(play(get(Object::CHUID), &script), Err(PivError::Nonsense));
    let mut commands = 0;
    let endless = run(get(Object::CHUID), |_| {
        commands += 1;
        Ok::<_, ()>(ResponseApdu::new(vec![1], StatusWord(0x6101)))
    });
    assert_eq!(endless, Ok(Err(PivError::Nonsense)));
    assert!(commands <= MAX_COMMANDS);

    let put = Dialogue::start(channel, |mut card| async move {
        card.put_data(Object(0x5F_FE9A), &[7; 300]).await
    });
    let data = [hex("5C035FFE9A 5382012C"), vec![7; 300]].concat();
    let mut sent = Vec::new();
    let outcome = run(put, |command| {
        sent.push((command.header().cla, command.data().to_vec(), command.le()));
        Ok::<_, ()>(StatusWord::OK.into())
    });
    assert_eq!(outcome, Ok(Ok(())));
    let (first, last) = data.split_at(255);
    // Chaining is bit 5 of the class, channel or not.
    assert_eq!(
        sent,
        [(0x51, first.to_vec(), None), (0x41, last.to_vec(), None)]
    );
}

#[test]
fn pins_are_filled_up_and_tries_are_read() {
    let verify = |pin: &'static str| {
        Dialogue::start(BASIC, move |mut card| async move {
            card.verify(PinReference::Application, pin.as_bytes()).await
        })
    };
    let sent = "0020008008313233343536FFFF";
    assert_eq!(play(verify("123456"), &[(sent, "9000")]), Ok(()));
    for (answer, error) in [
        ("63C2", PivError::WrongPin { tries: 2 }),
        ("6983", PivError::Blocked),
    ] {
        assert_eq!(play(verify("123456"), &[(sent, answer)]), Err(error));
    }
    for pin in ["", "12345", "123456789", "12345\u{7f}"] {
        assert_eq!(play(verify(pin), &[]), Err(PivError::InvalidPin), "{pin}");
    }
    for (answer, tries) in [
        ("9000", Tries::Verified),
        ("63C3", Tries::Left(3)),
        ("6983", Tries::Left(0)),
        ("6A88", Tries::Unknown),
    ] {
        let step = Dialogue::start(BASIC, |mut card| async move {
            card.tries(PinReference::Global).await
        });
        assert_eq!(play(step, &[("00200000", answer)]), Ok(tries));
    }
    let change = Dialogue::start(BASIC, |mut card| async move {
        card.change_pin(PinReference::Application, b"123456", b"87654321")
            .await?;
        card.unblock_pin(b"12345678", b"654321").await?;
        card.forget_pin(PinReference::Application).await
    });
    let script = [
        ("0024008010 313233343536FFFF 3837363534333231", "9000"),
        ("002C008010 3132333435363738 363534333231FFFF", "9000"),
        ("0020FF80", "9000"),
    ];
    assert_eq!(play(change, &script), Ok(()));
}

#[test]
fn signing_decrypting_and_agreeing_have_their_templates() {
    let digest = [0xAB; 32];
    let sign = Dialogue::start(BASIC, move |mut card| async move {
        card.operate(Slot::SIGNATURE, Algorithm::P256, &digest)
            .await
    });
    let sent = format!("0087119C26 7C24 8200 8120 {} 00", "AB".repeat(32));
    let answer = "7C0A 8208 3006 020101 020102 9000";
    assert_eq!(play(sign, &[(&sent, answer)]), Ok(hex("3006020101020102")));

    let point = [&[4][..], &[9; 64]].concat();
    let agree = move |point: Vec<u8>| {
        Dialogue::start(BASIC, move |mut card| async move {
            card.agree(Slot::KEY_MANAGEMENT, Algorithm::P256, &point)
                .await
        })
    };
    let sent = format!("0087119D47 7C45 8200 8541 04 {} 00", "09".repeat(64));
    let secret = "11".repeat(32);
    let answer = format!("7C22 8220 {secret} 9000");
    assert_eq!(
        play(agree(point.clone()), &[(&sent, &answer)]),
        Ok(hex(&secret))
    );
    assert_eq!(
        play(agree(point.clone()), &[(&sent, "7C03 8201 11 9000")]),
        Err(PivError::Nonsense)
    );
    assert_eq!(
        play(agree(point[..64].to_vec()), &[]),
        Err(PivError::BadData)
    );
    let short = Dialogue::start(BASIC, |mut card| async move {
        card.operate(Slot::SIGNATURE, Algorithm::Rsa2048, &[1; 255])
            .await
    });
    assert_eq!(play(short, &[]), Err(PivError::BadData));
}

/// NIST SP 800-67 and FIPS 197 have these: three times the same key makes DES of Triple DES.
#[test]
fn management_keys_encrypt_as_the_standards_say() {
    for (algorithm, key, block, expected) in [
        (
            ManagementAlgorithm::Aes128,
            "000102030405060708090A0B0C0D0E0F",
            "00112233445566778899AABBCCDDEEFF",
            "69C4E0D86A7B0430D8CDB78070B4C55A",
        ),
        (
            ManagementAlgorithm::Aes192,
            "000102030405060708090A0B0C0D0E0F1011121314151617",
            "00112233445566778899AABBCCDDEEFF",
            "DDA97CA4864CDFE06EAF70A0EC0D7191",
        ),
        (
            ManagementAlgorithm::Aes256,
            "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
            "00112233445566778899AABBCCDDEEFF",
            "8EA2B7CA516745BFEAFC49904B496089",
        ),
        (
            ManagementAlgorithm::Tdes,
            "133457799BBCDFF1133457799BBCDFF1133457799BBCDFF1",
            "0123456789ABCDEF",
            "85E813540F0AB405",
        ),
    ] {
        let key = ManagementKey::new(&hex(key)).unwrap();
        assert!(key.algorithms().contains(&algorithm));
        assert_eq!(key.encrypt(algorithm, &hex(block)), Some(hex(expected)));
        assert_eq!(key.decrypt(algorithm, &hex(expected)), Some(hex(block)));
        assert_eq!(key.encrypt(algorithm, &[1; 5]), None);
    }
    assert_eq!(
        ManagementKey::new(&[1; 20]).unwrap_err(),
        ManagementKeyError(20)
    );
}

/// A card that has this key, and says of it what the arguments say.
fn card_with_management_key(
    key: ManagementKey,
    algorithm: ManagementAlgorithm,
    tells: bool,
) -> impl FnMut(CommandApdu) -> Result<ResponseApdu, ()> {
    let witness = vec![0x5A; algorithm.block_length()];
    move |command| {
        let header = command.header();
        let answer = |tag, value: Vec<u8>| {
            let mut inner = Vec::new();
            tlv::write(&mut inner, Tag(tag), &value);
            let mut data = Vec::new();
            tlv::write(&mut data, Tag(0x7C), &inner);
            Ok(ResponseApdu::new(data, StatusWord::OK))
        };
        match (header.ins, command.data()) {
            (0xF7, _) if tells => Ok(ResponseApdu::new(
                vec![1, 1, algorithm.to_byte()],
                StatusWord::OK,
            )),
            (0xF7, _) => Ok(StatusWord::INS_NOT_SUPPORTED.into()),
            (0x87, _) if header.p1 != algorithm.to_byte() => Ok(StatusWord::INCORRECT_P1_P2.into()),
            (0x87, [0x7C, 2, 0x80, 0]) => answer(0x80, key.encrypt(algorithm, &witness).unwrap()),
            (0x87, [0x7C, _, 0x80, length, rest @ ..]) => {
                let (found, rest) = rest.split_at(usize::from(*length));
                assert_eq!(rest[0], 0x81);
                if found != witness {
                    return Ok(StatusWord(0x6982).into());
                }
                answer(0x82, key.encrypt(algorithm, &rest[2..]).unwrap())
            }
            _ => panic!("unexpected"),
        }
    }
}

#[test]
fn the_management_key_is_proved_both_ways_whatever_the_algorithm() {
    let authenticate = |key: &ManagementKey| {
        let key = key.clone();
        Dialogue::start(BASIC, move |mut card| async move {
            card.authenticate_management(&key, &[3; 16]).await
        })
    };
    for algorithm in ManagementAlgorithm::ALL {
        let bytes: Vec<u8> = (0..algorithm.key_length() as u8).collect();
        let key = ManagementKey::new(&bytes).unwrap();
        let other = ManagementKey::new(&vec![0x77; bytes.len()]).unwrap();
        for tells in [true, false] {
            let card = card_with_management_key(key.clone(), algorithm, tells);
            assert_eq!(run(authenticate(&key), card), Ok(Ok(())), "{algorithm:?}");
            let card = card_with_management_key(key.clone(), algorithm, tells);
            assert_eq!(
                run(authenticate(&other), card),
                Ok(Err(PivError::WrongManagementKey))
            );
            // A card that only pretends to have it: it takes any witness, and cannot answer the challenge.
            let mut card = card_with_management_key(key.clone(), algorithm, tells);
            let outcome = run(authenticate(&key), |command| {
                let mut response = card(command)?;
                if response.data.get(2) == Some(&0x82)
                    && let Some(last) = response.data.last_mut()
                {
                    *last ^= 1;
                }
                Ok::<_, ()>(response)
            });
            assert_eq!(outcome, Ok(Err(PivError::WrongManagementKey)));
        }
    }
}

#[test]
fn generated_keys_become_public_keys() {
    let generate = Dialogue::start(BASIC, |mut card| async move {
        card.generate(Generate {
            slot: Slot::AUTHENTICATION,
            algorithm: Algorithm::P256,
            pin_policy: Some(PinPolicy::Always),
        })
        .await
    });
    let point = format!("04 {}", "0C".repeat(64));
    let answer = format!("7F4943 8641 {point} 9000");
    let key = play(generate, &[("0047009A08 AC06 800111 AA0103 00", &answer)]).unwrap();
    assert_eq!(
        key,
        PublicKey::Ec {
            algorithm: Algorithm::P256,
            point: hex(&point)
        }
    );
    let spki = "3059 3013 06072A8648CE3D0201 06082A8648CE3D030107 034200";
    assert_eq!(key.to_spki(), hex(&format!("{spki} {point}")));
    // A point of another curve, and one that is compressed.
    for template in [
        format!("7F4943 8641 {point}"),
        format!("7F4923 8621 02 {}", "0C".repeat(32)),
    ] {
        assert_eq!(
            PublicKey::from_template(Algorithm::P384, &hex(&template)),
            Err(PivError::Nonsense)
        );
    }
}

#[test]
fn signatures_become_plain_and_digests_fit() {
    let signature = "3045 022100FF 02200102";
    assert!(plain_signature(Algorithm::P256, &hex(signature)).is_err());
    let r = "F0".repeat(32);
    let signature = hex(&format!("3026 022100 {r} 020105"));
    let plain = plain_signature(Algorithm::P256, &signature).unwrap();
    assert_eq!(plain, hex(&format!("{r} {}05", "00".repeat(31))));
    assert_eq!(
        plain_signature(Algorithm::P256, &hex("3003020101")),
        Err(PivError::Nonsense)
    );
    assert_eq!(
        plain_signature(Algorithm::P256, &hex("3009020101020101020101")),
        Err(PivError::Nonsense)
    );
    assert_eq!(ecdsa_input(Algorithm::P256, &[1; 64]), [1; 32]);
    assert_eq!(
        ecdsa_input(Algorithm::P384, &[1; 32]),
        [[0; 16].as_slice(), &[1; 32]].concat()
    );
}

/// `printf '\060\003\002\001\005' | gzip -9n`, the same with a name, and through zlib.
const PACKED: [&str; 3] = [
    "1F8B0800000000000203 33606662640500 D5F1431F 05000000",
    "1F8B0808000000000203 6100 33606662640500 D5F1431F 05000000",
    "78DA33606662640500010E003C",
];

#[test]
fn certificates_may_be_compressed_within_bounds() {
    let small = hex("3003020105");
    assert_eq!(
        certificate(&with_certificate(&small)),
        Ok(Some(small.clone()))
    );
    for packed in PACKED {
        let mut value = Vec::new();
        tlv::write(&mut value, Tag(0x70), &hex(packed));
        tlv::write(&mut value, Tag(0x71), &[1]);
        assert_eq!(certificate(&value), Ok(Some(small.clone())));
    }
    let pack = |bytes: &[u8]| {
        let deflated = miniz_oxide::deflate::compress_to_vec(bytes, 9);
        let gzip = [&hex("1F8B0800000000000203"), &deflated[..], &[0; 8]].concat();
        let mut value = Vec::new();
        tlv::write(&mut value, Tag(0x70), &gzip);
        tlv::write(&mut value, Tag(0x71), &[1]);
        value
    };
    assert_eq!(certificate(&pack(&small)), Ok(Some(small)));
    let mut large = Vec::new();
    tlv::write(&mut large, Tag(0x30), &vec![0; MAX_CERTIFICATE - 4]);
    assert_eq!(certificate(&pack(&large)), Ok(Some(large.clone())));
    large.clear();
    // A few hundred bytes that would become sixteen million.
    tlv::write(&mut large, Tag(0x30), &vec![0; 0xFF_FFFF]);
    assert_eq!(certificate(&pack(&large)), Err(PivError::Nonsense));
    assert_eq!(certificate(&[]), Ok(None));
    assert_eq!(certificate(&hex("7000 710100 FE00")), Ok(None));
    assert_eq!(certificate(&hex("7003020105")), Err(PivError::Nonsense));
}

#[test]
fn identifiers_and_policies_are_read() {
    let guid = [7; 16];
    let chuid = Chuid::parse(&Chuid::self_issued(&guid, b"20990101")).unwrap();
    assert_eq!(chuid.guid, Some(guid));
    assert_eq!(chuid.expiry, Some(*b"20990101"));
    assert_eq!(chuid.fasc_n.map(|fasc_n| fasc_n.len()), Some(25));
    assert_eq!(
        Chuid::parse(&Chuid::self_issued(&[0; 16], b"20990101"))
            .unwrap()
            .guid,
        None
    );
    let discovery =
        |policy| Discovery::parse(&hex(&format!("4F0BA000000308000010000100 5F2F02{policy}")));
    assert_eq!(discovery("4000"), Ok(Discovery::default()));
    assert!(discovery("6020").unwrap().prefers_global_pin);
    assert!(!discovery("6010").unwrap().prefers_global_pin);
    assert!(!discovery("4020").unwrap().prefers_global_pin);
    let metadata = Metadata::parse(&hex("010111 02020301 030101 0443 8641 04")).unwrap_err();
    assert_eq!(metadata, PivError::Nonsense);
    let whole = format!("010111 02020301 030101 0443 864104 {}", "0A".repeat(64));
    let metadata = Metadata::parse(&hex(&whole)).unwrap();
    assert_eq!(metadata.pin_policy, Some(PinPolicy::Always));
    assert_eq!(metadata.is_generated, Some(true));
    assert!(metadata.public_key.is_some());
}

#[test]
fn slots_have_the_objects_of_the_standard() {
    assert_eq!(Slot::all().count(), 24);
    for (slot, object) in [
        (0x9A, 0x5F_C105),
        (0x9C, 0x5F_C10A),
        (0x9D, 0x5F_C10B),
        (0x9E, 0x5F_C101),
        (0x82, 0x5F_C10D),
        (0x95, 0x5F_C120),
    ] {
        assert_eq!(Slot::new(slot).unwrap().certificate(), Object(object));
    }
    assert_eq!(Slot::new(0x9B), None);
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::from_byte(algorithm.to_byte()), Some(algorithm));
    }
}

fn public_keys() -> impl Strategy<Value = PublicKey> {
    let bytes = || proptest::collection::vec(any::<u8>(), 512);
    (0..6_usize, bytes()).prop_map(|(index, bytes)| {
        let algorithm = Algorithm::ALL[index];
        let length = algorithm.length();
        if algorithm.is_rsa() {
            let mut modulus = bytes[..length].to_vec();
            modulus[0] |= 0x80;
            let exponent = vec![1, 0, 1];
            PublicKey::Rsa { modulus, exponent }
        } else {
            let point = [&[4], &bytes[..2 * length]].concat();
            PublicKey::Ec { algorithm, point }
        }
    })
}

proptest! {
    #[test]
    fn public_keys_round_trip(key in public_keys()) {
        prop_assert_eq!(PublicKey::from_spki(&key.to_spki()), Ok(key.clone()));
        let algorithm = key.algorithm().unwrap();
        prop_assert_eq!(PublicKey::from_objects(algorithm, &key.to_objects()), Ok(key.clone()));
        let mut fields = hex("A003020102 020101 3000 3000 3000 3000");
        fields.extend(key.to_spki());
        for version in [5, 0] {
            let mut signed = Vec::new();
            tlv::write(&mut signed, Tag(0x30), &fields[version..]);
            let mut certificate = Vec::new();
            tlv::write(&mut certificate, Tag(0x30), &signed);
            prop_assert_eq!(PublicKey::of_certificate(&certificate), Ok(key.clone()));
        }
    }

    #[test]
    fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = ApplicationProperties::parse(&bytes);
        let _ = Discovery::parse(&bytes);
        let _ = Chuid::parse(&bytes);
        let _ = Metadata::parse(&bytes);
        let _ = certificate(&bytes);
        let _ = PublicKey::from_spki(&bytes);
        let _ = PublicKey::of_certificate(&bytes);
        for algorithm in Algorithm::ALL {
            let _ = PublicKey::from_template(algorithm, &bytes);
            let _ = plain_signature(algorithm, &bytes);
        }
    }

    #[test]
    fn whatever_the_card_answers_a_dialogue_ends_on_its_channel(
        answers in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..60), any::<u16>()), 1..20),
        number in 0..20_u8,
    ) {
        let channel = ChannelNumber::new(number).unwrap();
        let key = ManagementKey::new(&[1; 24]).unwrap();
        let step = Dialogue::start(channel, move |mut card| async move {
            let _ = card.select().await;
            let _ = card.chuid().await;
            let _ = card.certificate(Slot::SIGNATURE).await;
            let _ = card.metadata(Slot::SIGNATURE).await;
            let _ = card.authenticate_management(&key, &[1; 16]).await;
            let _ = card.put_certificate(Slot::SIGNATURE, &[0; 700]).await;
            let _ = card.attest(Slot::SIGNATURE).await;
            card.operate(Slot::SIGNATURE, Algorithm::Rsa3072, &[1; 384]).await
        });
        let mut answers = answers.into_iter().cycle();
        let mut commands = 0;
        let _ = run(step, |command| {
            commands += 1;
            assert!(commands <= MAX_COMMANDS);
            assert_eq!(channel_of(command.header().cla), Ok(channel));
            let (data, status) = answers.next().unwrap();
            Ok::<_, ()>(ResponseApdu::new(data, StatusWord(status)))
        });
    }
}
