/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The PIV application, by the commands that the broker sends. OpenSSL says whether what its keys do is right.

use std::future::Future;
use std::path::Path;
use std::process::Command;

use secure_element::class_byte::ChannelNumber;
use secure_element::exchange::Kind;
use secure_element::piv::data::with_certificate;
use secure_element::piv::dialogue::{Dialogue, run};
use secure_element::piv::key::{PublicKey, ecdsa_input, plain_signature};
use secure_element::piv::{
    self as standard, Algorithm, Generate, ManagementAlgorithm, ManagementKey, Metadata, Object,
    PinPolicy, PinReference, PivError, Slot, Tries,
};
use tempfile::TempDir;
use virtual_card::applets::issuer::IssuerSecurityDomain;
use virtual_card::applets::piv::{self, Piv, PrivateKey};
use virtual_card::{Card, Profile, VirtualCard};

use super::{BASIC, Client, status};

const PIN: PinReference = PinReference::Application;

/// Carries a course out on a channel.
fn carry_out<T, F>(
    client: &mut Client,
    channel: ChannelNumber,
    course: impl FnOnce(standard::Card) -> F,
) -> Result<T, PivError>
where
    F: Future<Output = Result<T, PivError>> + Send + 'static,
{
    let step = Dialogue::start(channel, course);
    let outcome = run(step, |command| {
        Ok::<_, ()>(client.run(&command, Kind::Ordinary))
    });
    outcome.unwrap()
}

/// A card of that profile, with PIV if it has none.
fn client(profile: &str) -> Client {
    let mut client = Client::new(profile);
    client.card.install(Box::new(Piv::new()));
    client
}

fn management_key() -> ManagementKey {
    ManagementKey::new(&piv::MANAGEMENT_KEY).unwrap()
}

/// A channel with PIV, on which PIN and management key have been shown.
fn opened(client: &mut Client, profile: &str) -> ChannelNumber {
    let channel = match profile {
        "piv" => BASIC,
        _ => client.open_with(&standard::AID),
    };
    carry_out(client, channel, |mut card| async move {
        card.select().await?;
        card.authenticate_management(&management_key(), &[7; 16])
            .await?;
        card.verify(PIN, &piv::PIN).await
    })
    .unwrap();
    channel
}

fn generate(
    client: &mut Client,
    channel: ChannelNumber,
    slot: Slot,
    algorithm: Algorithm,
) -> PublicKey {
    carry_out(client, channel, move |mut card| async move {
        card.generate(Generate {
            slot,
            algorithm,
            pin_policy: None,
        })
        .await
    })
    .unwrap()
}

fn operate(
    client: &mut Client,
    channel: ChannelNumber,
    slot: Slot,
    algorithm: Algorithm,
    input: Vec<u8>,
) -> Result<Vec<u8>, PivError> {
    carry_out(client, channel, move |mut card| async move {
        card.operate(slot, algorithm, &input).await
    })
}

fn openssl(folder: &Path, arguments: &str) -> String {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "openssl {arguments}: {text}{errors}"
    );
    text
}

const DIGEST: [u8; 32] = [0xD1; 32];

/// A block of RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 9.2).
fn pkcs1_block(length: usize) -> Vec<u8> {
    const INFO: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
        0x05, 0x00, 0x04, 0x20,
    ];
    let filling = vec![0xFF; length - 3 - INFO.len() - DIGEST.len()];
    [&[0, 1], &*filling, &[0], &INFO, &DIGEST].concat()
}

/// Whether OpenSSL takes the signature of [`DIGEST`] for the key's.
fn check_signature(key: &PublicKey, signature: &[u8]) {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    std::fs::write(path.join("key.der"), key.to_spki()).unwrap();
    std::fs::write(path.join("digest"), DIGEST).unwrap();
    std::fs::write(path.join("signature"), signature).unwrap();
    let command =
        "pkeyutl -verify -pubin -keyform DER -inkey key.der -in digest -sigfile signature";
    openssl(path, &format!("{command} -pkeyopt digest:sha256"));
    std::fs::write(path.join("digest"), [0xD2; 32]).unwrap();
    let other = Command::new("openssl")
        .args(command.split_whitespace())
        .args(["-pkeyopt", "digest:sha256"])
        .current_dir(path)
        .output()
        .unwrap();
    assert!(!other.status.success(), "another digest has this signature");
}

#[test]
fn generated_keys_sign_for_openssl_over_every_protocol() {
    for (profile, algorithms) in [
        (
            "default",
            &[Algorithm::Rsa2048, Algorithm::P256, Algorithm::P384][..],
        ),
        ("t0", &[Algorithm::Rsa2048, Algorithm::P384]),
        ("piv", &[Algorithm::P256, Algorithm::Rsa2048]),
    ] {
        let mut client = client(profile);
        let channel = opened(&mut client, profile);
        for algorithm in algorithms.iter().copied() {
            let slot = Slot::AUTHENTICATION;
            let key = generate(&mut client, channel, slot, algorithm);
            assert_eq!(key.algorithm(), Some(algorithm));
            let metadata = carry_out(&mut client, channel, move |mut card| async move {
                card.metadata(slot).await
            });
            let expected = Metadata {
                algorithm: Some(algorithm.to_byte()),
                pin_policy: Some(PinPolicy::Once),
                is_generated: Some(true),
                public_key: Some(key.clone()),
            };
            assert_eq!(metadata, Ok(Some(expected)));
            let input = match algorithm.is_rsa() {
                true => pkcs1_block(algorithm.length()),
                false => ecdsa_input(algorithm, &DIGEST),
            };
            let signature = operate(&mut client, channel, slot, algorithm, input).unwrap();
            check_signature(&key, &signature);
            if !algorithm.is_rsa() {
                let plain = plain_signature(algorithm, &signature).unwrap();
                assert_eq!(plain.len(), 2 * algorithm.length());
            }
            // The algorithm is not the caller's choice.
            let other = match algorithm {
                Algorithm::P256 => Algorithm::P384,
                _ => Algorithm::P256,
            };
            let input = vec![1; other.length()];
            let outcome = operate(&mut client, channel, slot, other, input);
            assert_eq!(outcome, Err(PivError::Unsupported), "{profile}");
        }
    }
}

#[test]
fn openssl_agrees_on_secrets_and_encrypts_for_the_card() {
    let mut client = client("default");
    let channel = opened(&mut client, "default");
    let slot = Slot::KEY_MANAGEMENT;
    for (algorithm, curve) in [(Algorithm::P256, "P-256"), (Algorithm::P384, "P-384")] {
        let key = generate(&mut client, channel, slot, algorithm);
        let folder = TempDir::new().unwrap();
        let path = folder.path();
        std::fs::write(path.join("card.der"), key.to_spki()).unwrap();
        let new = format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:{curve} -out peer.pem");
        openssl(path, &new);
        openssl(path, "pkey -in peer.pem -pubout -outform DER -out peer.der");
        openssl(path, "pkey -pubin -inform DER -in card.der -out card.pem");
        openssl(
            path,
            "pkeyutl -derive -inkey peer.pem -peerkey card.pem -out secret",
        );
        let peer = PublicKey::from_spki(&std::fs::read(path.join("peer.der")).unwrap()).unwrap();
        let PublicKey::Ec { point, .. } = peer else {
            panic!("no point");
        };
        let agree = |client: &mut Client, point: Vec<u8>| {
            carry_out(client, channel, move |mut card| async move {
                card.agree(slot, algorithm, &point).await
            })
        };
        let secret = std::fs::read(path.join("secret")).unwrap();
        assert_eq!(agree(&mut client, point.clone()), Ok(secret));
        // A point that is not on the curve.
        let mut elsewhere = point;
        elsewhere[40] ^= 1;
        assert_eq!(agree(&mut client, elsewhere), Err(PivError::BadData));
    }

    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let key = generate(&mut client, channel, slot, Algorithm::Rsa2048);
    std::fs::write(path.join("card.der"), key.to_spki()).unwrap();
    std::fs::write(path.join("text"), [&[0; 1][..], &[0x42; 255]].concat()).unwrap();
    openssl(
        path,
        "pkeyutl -encrypt -pubin -keyform DER -inkey card.der -pkeyopt rsa_padding_mode:none -in text -out encrypted",
    );
    let encrypted = std::fs::read(path.join("encrypted")).unwrap();
    let text = operate(&mut client, channel, slot, Algorithm::Rsa2048, encrypted);
    assert_eq!(text, Ok([&[0; 1][..], &[0x42; 255]].concat()));
    let short = operate(&mut client, channel, slot, Algorithm::Rsa2048, vec![1; 10]);
    assert_eq!(short, Err(PivError::BadData));
}

#[test]
fn each_slot_has_its_pin_policy() {
    let mut client = client("default");
    let channel = opened(&mut client, "default");
    for slot in [
        Slot::AUTHENTICATION,
        Slot::SIGNATURE,
        Slot::CARD_AUTHENTICATION,
    ] {
        generate(&mut client, channel, slot, Algorithm::P256);
    }
    let digest = DIGEST.to_vec();
    let sign = |client: &mut Client, channel, slot| {
        operate(client, channel, slot, Algorithm::P256, digest.clone()).map(drop)
    };
    let verify = |client: &mut Client, channel| {
        carry_out(client, channel, |mut card| async move {
            card.verify(PIN, &piv::PIN).await
        })
    };
    let refused = Err(PivError::NotAuthenticated);
    let (once, always, never) = (
        Slot::AUTHENTICATION,
        Slot::SIGNATURE,
        Slot::CARD_AUTHENTICATION,
    );
    // The PIN was verified, but generating came between.
    assert_eq!(sign(&mut client, channel, always), refused);
    for _ in 0..2 {
        assert_eq!(sign(&mut client, channel, once), Ok(()));
    }
    assert_eq!(verify(&mut client, channel), Ok(()));
    assert_eq!(sign(&mut client, channel, always), Ok(()));
    assert_eq!(sign(&mut client, channel, always), refused);
    // What was opened on one channel is not on another.
    let other = client.open_with(&standard::AID);
    assert_eq!(sign(&mut client, other, once), refused);
    assert_eq!(sign(&mut client, other, never), Ok(()));
    // VERIFY elsewhere is no VERIFY here.
    assert_eq!(verify(&mut client, other), Ok(()));
    assert_eq!(sign(&mut client, channel, always), refused);
    // SELECT ends it, and so does a reset.
    client.select(&standard::AID, channel);
    assert_eq!(sign(&mut client, channel, once), refused);
    assert_eq!(sign(&mut client, other, once), Ok(()));
    client.card.reset();
    client.select(&standard::AID, BASIC);
    assert_eq!(sign(&mut client, BASIC, once), refused);
    assert_eq!(sign(&mut client, BASIC, never), Ok(()));
    let empty = sign(&mut client, BASIC, Slot::KEY_MANAGEMENT);
    assert_eq!(empty, Err(PivError::NotThere));
}

#[test]
fn pin_and_puk_have_tries() {
    let mut client = client("piv");
    let outcome = carry_out(&mut client, BASIC, |mut card| async move {
        card.select().await?;
        let mut found = Vec::new();
        assert_eq!(card.tries(PIN).await?, Tries::Left(3));
        for _ in 0..4 {
            found.push(card.verify(PIN, b"654321").await);
        }
        assert_eq!(card.tries(PIN).await?, Tries::Left(0));
        found.push(card.verify(PIN, &piv::PIN).await);
        found.push(card.unblock_pin(b"00000000", b"111111").await);
        found.push(card.unblock_pin(&piv::PUK, b"111111").await);
        found.push(card.verify(PIN, b"111111").await);
        assert_eq!(card.tries(PIN).await?, Tries::Verified);
        card.forget_pin(PIN).await?;
        assert_eq!(card.tries(PIN).await?, Tries::Left(3));
        found.push(card.change_pin(PIN, b"222222", b"333333").await);
        found.push(card.change_pin(PIN, b"111111", b"33333333").await);
        found.push(card.verify(PIN, b"33333333").await);
        let puk = PinReference::UnblockingKey;
        found.push(card.change_pin(puk, &piv::PUK, b"87654321").await);
        found.push(card.unblock_pin(&piv::PUK, b"111111").await);
        Ok(found)
    });
    let wrong = |tries| Err(PivError::WrongPin { tries });
    assert_eq!(
        outcome.unwrap(),
        [
            wrong(2),
            wrong(1),
            wrong(0),
            Err(PivError::Blocked),
            Err(PivError::Blocked),
            wrong(2),
            Ok(()),
            Ok(()),
            wrong(2),
            Ok(()),
            Ok(()),
            Ok(()),
            wrong(2),
        ]
    );
    // What cannot be a PIN costs nothing.
    assert_eq!(
        client.send(BASIC, [0, 0x20, 0, 0x80], &[0x31; 4], None),
        status(0x6700)
    );
    assert_eq!(
        client.send(
            BASIC,
            [0, 0x20, 0, 0x80],
            b"12\xFF\xFF\xFF\xFF\xFF\xFF",
            None
        ),
        status(0x6A80)
    );
    assert_eq!(
        client.send(BASIC, [0, 0x20, 0, 0x00], &[], None),
        status(0x6A88)
    );
}

#[test]
fn the_management_key_opens_what_changes_the_card() {
    for algorithm in ManagementAlgorithm::ALL {
        let bytes: Vec<u8> = (0x40..).take(algorithm.key_length()).collect();
        let mut client = client("default");
        let applet = Piv::new().with_management_key(algorithm, &bytes);
        client.card.install(Box::new(applet));
        client.select(&standard::AID, BASIC);
        let object = Object(0x5F_FE9A);
        let put = |client: &mut Client| {
            carry_out(client, BASIC, move |mut card| async move {
                card.put_data(object, b"kept").await
            })
        };
        let right = ManagementKey::new(&bytes).unwrap();
        let wrong = ManagementKey::new(&vec![9; bytes.len()]).unwrap();
        let other_length = ManagementKey::new(&vec![9; if bytes.len() == 16 { 32 } else { 16 }]);
        let show = |client: &mut Client, key: ManagementKey| {
            carry_out(client, BASIC, move |mut card| async move {
                card.authenticate_management(&key, &[7; 16]).await
            })
        };
        assert_eq!(put(&mut client), Err(PivError::NotAuthenticated));
        for key in [wrong, other_length.unwrap()] {
            assert_eq!(show(&mut client, key), Err(PivError::WrongManagementKey));
            assert_eq!(put(&mut client), Err(PivError::NotAuthenticated));
        }
        assert_eq!(show(&mut client, right.clone()), Ok(()));
        assert_eq!(put(&mut client), Ok(()));
        // In one direction: the card's challenge, encrypted.
        client.select(&standard::AID, BASIC);
        let header = [0, 0x87, algorithm.to_byte(), 0x9B];
        for is_right in [false, true] {
            let answer = client.send(BASIC, header, &[0x7C, 2, 0x81, 0], Some(256));
            let challenge = answer.data.get(4..).unwrap();
            let mut response = right.encrypt(algorithm, challenge).unwrap();
            response[0] ^= u8::from(!is_right);
            let length = response.len() as u8;
            let data = [&[0x7C, length + 2, 0x82, length], &*response].concat();
            let expected = if is_right { 0x9000 } else { 0x6982 };
            assert_eq!(
                client.send(BASIC, header, &data, Some(256)),
                status(expected)
            );
            // There is one attempt for each challenge.
            assert_eq!(client.send(BASIC, header, &data, Some(256)), status(0x6A80));
        }
        assert_eq!(put(&mut client), Ok(()));
    }
}

#[test]
fn objects_are_kept_within_bounds_and_keys_deleted() {
    for profile in ["default", "t0", "piv"] {
        let mut client = client(profile);
        let channel = opened(&mut client, profile);
        let mut certificate = vec![0x30, 0x82, 0x0B, 0xB8];
        certificate.resize(3004, 0x05);
        let kept = certificate.clone();
        let outcome = carry_out(&mut client, channel, move |mut card| async move {
            let slot = Slot::SIGNATURE;
            assert_eq!(card.certificate(slot).await?, None);
            card.put_certificate(slot, &kept).await?;
            let found = card.certificate(slot).await?;
            card.put_data(slot.certificate(), &[]).await?;
            assert_eq!(card.certificate(slot).await?, None);
            // 64 KiB are what it has.
            let mut outcomes = Vec::new();
            for slot in Slot::all().take(5) {
                outcomes.push(card.put_data(slot.certificate(), &[1; 15_000]).await);
            }
            assert_eq!(outcomes[..4], [Ok(()); 4]);
            assert_eq!(outcomes[4], Err(PivError::Full));
            // Replacing does not count twice.
            card.put_data(slot.certificate(), &[2; 15_000]).await?;
            assert_eq!(
                card.put_data(Object::DISCOVERY, &[]).await,
                Err(PivError::BadData)
            );
            Ok(found)
        });
        assert_eq!(outcome, Ok(Some(certificate)));
        let chuid = carry_out(&mut client, channel, |mut card| async move {
            card.chuid().await
        });
        assert_eq!(chuid.unwrap().unwrap().guid, Some(piv::GUID));

        generate(
            &mut client,
            channel,
            Slot::new(0x82).unwrap(),
            Algorithm::P256,
        );
        let outcome = carry_out(&mut client, channel, |mut card| async move {
            let slot = Slot::new(0x82).unwrap_or(Slot::SIGNATURE);
            card.delete_key(slot).await?;
            assert_eq!(card.metadata(slot).await?, None);
            card.delete_key(slot).await
        });
        assert_eq!(outcome, Err(PivError::NotThere));
    }
}

#[test]
fn keys_from_outside_say_so() {
    let secret = p256_key();
    let expected = secret.public();
    let mut card = VirtualCard::new(
        Profile::named("piv").unwrap(),
        Box::new(IssuerSecurityDomain),
    );
    card.install(Box::new(
        Piv::new().with_key(Slot::CARD_AUTHENTICATION, secret),
    ));
    let mut client = client("piv");
    client.card = card;
    let metadata = carry_out(&mut client, BASIC, |mut card| async move {
        let properties = card.select().await?;
        assert_eq!(properties.label.as_deref(), Some("Servo virtual PIV"));
        assert!(properties.algorithms.contains(&Algorithm::Rsa3072));
        assert_eq!(card.serial().await?, Some(u32::from_be_bytes(piv::SERIAL)));
        assert_eq!(card.version().await?, Some(piv::VERSION));
        card.metadata(Slot::CARD_AUTHENTICATION).await
    });
    let metadata = metadata.unwrap().unwrap();
    assert_eq!(metadata.is_generated, Some(false));
    assert_eq!(metadata.public_key, Some(expected.clone()));
    let signature = operate(
        &mut client,
        BASIC,
        Slot::CARD_AUTHENTICATION,
        Algorithm::P256,
        DIGEST.to_vec(),
    );
    check_signature(&expected, &signature.unwrap());
    assert!(!with_certificate(&[1]).is_empty());
}

fn p256_key() -> PrivateKey {
    PrivateKey::generate(Algorithm::P256).unwrap().unwrap()
}

#[test]
fn the_default_cards_rules_leave_piv_to_keys() {
    let client = |aid: &[u8]| {
        let mut client = Client::new("default");
        client.select(&super::ara_m_applet::AID, BASIC);
        let reference = [&[0x4F, aid.len() as u8], aid, &[0xC1, 0]].concat();
        let data = [&[0xE1, reference.len() as u8], &*reference].concat();
        client.send(BASIC, [0x80, 0xCA, 0xFF, 0x50], &data, Some(256))
    };
    let never = [0xFF, 0x50, 0x05, 0xE3, 0x03, 0xD0, 0x01, 0x00];
    assert_eq!(client(&piv::AID).data, never);
    assert_eq!(client(&[]).data.last(), Some(&0x01));
    for (name, profile) in Profile::NAMED {
        let mut card = VirtualCard::from_profile(name).unwrap();
        let select = [&[0x00, 0xA4, 0x04, 0x0C, 0x09][..], &standard::AID].concat();
        let found = card.transmit(&select) == [0x90, 0x00];
        assert_eq!(found, profile.has_piv, "{name}");
    }
}
