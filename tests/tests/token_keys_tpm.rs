/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in a TPM, from a page, on swtpm.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::swtpm::SoftwareTpm;
use e2e::token_page::{OpenSsl, Page, Result, decode, der_signature};
use serde_json::{Value, json};

fn page() -> Result<Page<SoftwareTpm>> {
    let tpm = SoftwareTpm::start()?;
    let config = tpm.token_config();
    let page = Page::start(tpm, &config, "")?;
    assert!(page.grant_token()?.is_string());
    Ok(page)
}

#[test]
fn keys_of_a_tpm_sign_and_decrypt() -> Result {
    let page = page()?;
    let openssl = OpenSsl::new()?;
    let token =
        page.run("({ protection: token.protection, provisionable: token.provisionable })")?;
    // It is a program, and says so.
    assert_eq!(
        token,
        json!({ "protection": "software", "provisionable": true })
    );
    for (name, algorithm, signing, options) in [
        ("p256", "curve", "ecdsa", &["-sha256"][..]),
        (
            "rsa",
            "rsa('RSASSA-PKCS1-v1_5')",
            "'RSASSA-PKCS1-v1_5'",
            &["-sha256"],
        ),
    ] {
        let made = page.run(&format!(
            "(async () => {{
                const pair = await token.generateKey({algorithm}, ['sign', 'verify'], {{ name: '{name}' }});
                const key = await cryptokeys.getKeyByName('{name}');
                return {{
                    spki: encode(await subtle.exportKey('spki', pair.publicKey)),
                    signature: encode(await subtle.sign({signing}, key, bytes('a message'))),
                    provenance: key.provenance,
                    exported: await failure(subtle.exportKey('pkcs8', key)),
                }};
            }})()"
        ))?;
        assert_eq!(made["provenance"], "generated");
        assert_eq!(made["exported"], "InvalidAccessError");
        let mut signature = decode(&made["signature"])?;
        if name == "p256" {
            signature = der_signature(&signature);
        }
        openssl.verify(&decode(&made["spki"])?, &signature, b"a message", options)?;
    }
    let spki = page.run(
        "(async () => {
            self.post = await token.generateKey(rsa('RSA-OAEP'), ['encrypt', 'decrypt'], { name: 'post' });
            return encode(await subtle.exportKey('spki', post.publicKey));
        })()",
    )?;
    let key = openssl.file("post.der", &decode(&spki)?)?;
    let message = openssl.file("message", b"from outside")?;
    openssl.run(&[
        "pkeyutl",
        "-encrypt",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        &key,
        "-in",
        &message,
        "-out",
        "encrypted",
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        "rsa_oaep_md:sha256",
    ])?;
    let encrypted = BASE64.encode(openssl.read("encrypted")?);
    let decrypted = page.run(&format!(
        "subtle.decrypt('RSA-OAEP', post.privateKey, decode('{encrypted}')).then(encode)"
    ))?;
    assert_eq!(decode(&decrypted)?, b"from outside");
    let wrong =
        page.run("failure(subtle.decrypt('RSA-OAEP', post.privateKey, new Uint8Array(256)))")?;
    assert_eq!(wrong, "OperationError");
    Ok(())
}

#[test]
fn keys_of_a_tpm_are_their_origins() -> Result {
    let page = page()?;
    page.run("token.generateKey(curve, ['sign'], { name: 'mine' }).then(() => null)")?;
    page.open_elsewhere()?;
    assert_eq!(page.run("cryptokeys.getKeyByName('mine')")?, Value::Null);
    page.grant_token()?;
    assert_eq!(page.run("cryptokeys.getKeyByName('mine')")?, Value::Null);
    assert_eq!(page.run("cryptokeys.getKeys()")?, json!([]));
    let failure = page.on_click("failure(cryptokeys.requestKey({ name: 'mine' }))")?;
    assert_eq!(failure, "NotFoundError");
    // It may have one of that name, which is another.
    let signed = page.run(
        "(async () => {
            const pair = await token.generateKey(curve, ['sign'], { name: 'mine' });
            return (await subtle.sign(ecdsa, pair.privateKey, bytes('x'))).byteLength;
        })()",
    )?;
    assert_eq!(signed, 64);
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// What comes after its length in two bytes.
fn sized<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = take(bytes, 2);
    take(
        bytes,
        usize::from(u16::from_be_bytes([length[0], length[1]])),
    )
}

/// A page has a server's challenge answered; the server, with OpenSSL, checks that the TPM has signed it, for this key.
#[test]
fn a_tpm_attests_its_key() -> Result {
    let page = page()?;
    let made = page.run(
        "(async () => {
            const pair = await token.generateKey(curve, ['sign'], { name: 'attested' });
            const attestation = await token.attestKey(pair.privateKey, bytes('a challenge'));
            return {
                found: (await cryptokeys.getKeys({ attestable: true })).length,
                spki: encode(await subtle.exportKey('spki', pair.publicKey)),
                format: attestation.format,
                statement: encode(attestation.statement),
                chain: attestation.chain.map(encode),
            };
        })()",
    )?;
    assert_eq!(made["found"], 1);
    assert_eq!(made["format"], "tpm");
    assert_eq!(made["chain"], json!([]));
    let statement = decode(&made["statement"])?;
    let part = |name| part(&statement, name).ok_or(format!("no {name}"));
    let (info, public, signer) = (part("certInfo")?, part("pubArea")?, part("akPub")?);
    // TPMS_ATTEST: made by a TPM (`TPM_GENERATED_VALUE`), about an object (`TPM_ST_ATTEST_CERTIFY`).
    let mut rest = info;
    assert_eq!(take(&mut rest, 6), [0xff, 0x54, 0x43, 0x47, 0x80, 0x17]);
    let _signer = sized(&mut rest);
    let openssl = OpenSsl::new()?;
    let digest = |data: &[u8]| -> Result<Vec<u8>> {
        let file = openssl.file("data", data)?;
        openssl.run(&["dgst", "-sha256", "-binary", "-out", "digest", &file])?;
        openssl.read("digest")
    };
    assert_eq!(sized(&mut rest), digest(b"a challenge")?);
    let _clock_and_firmware = take(&mut rest, 17 + 8);
    assert_eq!(
        sized(&mut rest),
        [&[0x00, 0x0b], &digest(public)?[..]].concat()
    );
    // Both areas end with a point; the first is the page's key.
    assert_eq!(subject_public_key_info(public), decode(&made["spki"])?);
    // TPMT_SIGNATURE: ECDSA with SHA-256.
    let mut rest = part("sig")?;
    assert_eq!(take(&mut rest, 4), [0x00, 0x18, 0x00, 0x0b]);
    let mut number = || {
        let number = sized(&mut rest);
        [&vec![0; 32 - number.len()], number].concat()
    };
    let signature = [number(), number()].concat();
    openssl.verify(
        &subject_public_key_info(signer),
        &der_signature(&signature),
        info,
        &["-sha256"],
    )?;
    Ok(())
}

/// A byte string of a map in CBOR.
fn part<'a>(map: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let name = name.as_bytes();
    let at = map.windows(name.len()).position(|window| window == name)?;
    match map.get(at + name.len()..)? {
        [0x58, length, rest @ ..] => rest.get(..usize::from(*length)),
        [0x59, high, low, rest @ ..] => rest.get(..usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// Of a key on P-256, from the end of its TPMT_PUBLIC.
fn subject_public_key_info(area: &[u8]) -> Vec<u8> {
    let mut rest = &area[area.len() - 68..];
    let header = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ];
    [&header[..], sized(&mut rest), sized(&mut rest)].concat()
}

#[test]
fn without_its_tpm_a_key_is_not_there() -> Result {
    let mut page = page()?;
    page.run(
        "token.generateKey(curve, ['sign'], { name: 'key' }).then(pair => { self.key = pair.privateKey; })",
    )?;
    page.token.switch_off()?;
    for _ in 0..2 {
        let failure = page.run("failure(subtle.sign(ecdsa, key, bytes('x')))")?;
        assert!(
            failure == "OperationError" || failure == "InvalidStateError",
            "{failure}"
        );
    }
    let failure = page.run("failure(subtle.sign(ecdsa, key, bytes('x')))")?;
    assert_eq!(failure, "InvalidStateError");
    // The page goes on.
    assert_eq!(page.run("cryptokeys.getKeyByName('none')")?, Value::Null);
    Ok(())
}
