/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A PIV card that answers anything.

use secure_element::apdu::{CommandApdu, ResponseApdu};
use secure_element::class_byte::{ChannelNumber, channel_of};
use secure_element::piv::data::{ApplicationProperties, Chuid, Discovery, certificate};
use secure_element::piv::dialogue::{Dialogue, MAX_COMMANDS, run as drive};
use secure_element::piv::key::{PublicKey, plain_signature};
use secure_element::piv::{
    Algorithm, Generate, MAX_CERTIFICATE, MAX_RESPONSE, ManagementKey, Metadata, PinReference, Slot,
};

/// The first byte of an input, where the rest is a data object, a template or a certificate.
pub const OBJECT: u8 = 0;
/// The first byte of an input, where the rest are the card's answers, each with its length in front (2 bytes). They repeat.
pub const ANSWERS: u8 = 1;

/// Reading ends within its bounds; what is read as a public key is written as one again; and whatever a card answers, a
/// course of commands ends and stays on its channel.
pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((&OBJECT, rest)) => object(rest),
        Some((&ANSWERS, rest)) => course(&answers(rest)),
        _ => {}
    }
}

fn object(bytes: &[u8]) {
    let _ = ApplicationProperties::parse(bytes);
    let _ = Discovery::parse(bytes);
    let _ = Chuid::parse(bytes);
    let metadata = Metadata::parse(bytes).ok();
    let found = certificate(bytes).ok().flatten().unwrap_or_default();
    assert!(found.len() <= MAX_CERTIFICATE);
    let keys = Algorithm::ALL
        .into_iter()
        .filter_map(|algorithm| PublicKey::from_template(algorithm, bytes).ok())
        .chain(PublicKey::from_spki(bytes))
        .chain(PublicKey::of_certificate(bytes))
        .chain(PublicKey::of_certificate(&found))
        .chain(metadata.and_then(|metadata| metadata.public_key));
    for key in keys {
        assert!(key.algorithm().is_some());
        assert_eq!(PublicKey::from_spki(&key.to_spki()), Ok(key));
    }
    for algorithm in [Algorithm::P256, Algorithm::P384] {
        if let Ok(plain) = plain_signature(algorithm, bytes) {
            assert_eq!(plain.len(), 2 * algorithm.length());
        }
    }
}

fn answers(mut bytes: &[u8]) -> Vec<ResponseApdu> {
    let mut answers = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (answer, rest) = rest.split_at(rest.len().min(length));
        answers.extend(ResponseApdu::parse(answer));
        bytes = rest;
    }
    answers
}

fn course(answers: &[ResponseApdu]) {
    let Some(channel) = ChannelNumber::new(7) else {
        return;
    };
    let Ok(key) = ManagementKey::new(&[1; 24]) else {
        return;
    };
    let step = Dialogue::start(channel, move |mut card| async move {
        let _ = card.select().await;
        let _ = card.discovery().await;
        let _ = card.chuid().await;
        let _ = card.serial().await;
        let _ = card.version().await;
        let _ = card.tries(PinReference::Application).await;
        let _ = card.verify(PinReference::Application, b"123456").await;
        let _ = card.authenticate_management(&key, &[2; 16]).await;
        let mut length = 0;
        for slot in Slot::all() {
            let found = card.certificate(slot).await;
            length = length.max(found.ok().flatten().unwrap_or_default().len());
            let _ = card.metadata(slot).await;
        }
        let slot = Slot::SIGNATURE;
        for algorithm in Algorithm::ALL {
            let new = Generate {
                slot,
                algorithm,
                pin_policy: None,
            };
            if let Ok(key) = card.generate(new).await {
                assert_eq!(key.algorithm(), Some(algorithm));
            }
            let _ = card.put_certificate(slot, &[0; 600]).await;
            let _ = card
                .operate(slot, algorithm, &vec![1; algorithm.length()])
                .await;
        }
        let point = [4; 65];
        if let Ok(secret) = card.agree(slot, Algorithm::P256, &point).await {
            assert_eq!(secret.len(), 32);
        }
        let attested = card.attest(slot).await.unwrap_or_default();
        Ok(length.max(attested.len()))
    });
    let mut answers = answers.iter().cycle();
    let mut commands = 0;
    let outcome = drive(step, |command: CommandApdu| {
        assert_eq!(channel_of(command.header().cla), Ok(channel));
        commands += 1;
        assert!(commands <= MAX_COMMANDS);
        answers.next().cloned().ok_or(())
    });
    if let Ok(Ok(length)) = outcome {
        assert!(length <= MAX_RESPONSE);
    }
}
