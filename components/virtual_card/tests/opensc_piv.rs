/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The PIV application behind a real `pcscd`, used by OpenSC's tools, which share no code with this project; OpenSSL checks
//! what comes of it.

use std::ffi::CStr;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pcsc::{Context, Scope, ShareMode};
use secure_element::class_byte::ChannelNumber;
use secure_element::exchange::{ExchangeError, Kind, Protocol, run};
use secure_element::piv::dialogue::{self, Dialogue};
use secure_element::piv::{
    Algorithm, Card as Application, Generate, ManagementKey, PivError, Slot,
};
use tempfile::TempDir;
use virtual_card::applets::piv;
use virtual_card::test_support::Pcscd;
use virtual_card::{Card, VirtualCard};

const MODULE: &str = "opensc-pkcs11.so";
const READER: &CStr = c"Virtual PCD 00 00";
const WAIT: Duration = Duration::from_secs(10);
/// How long a tool may take, as `timeout` has it.
const TOOL_LIMIT: &str = "60";

struct Scene {
    folder: TempDir,
}

impl Scene {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn tool(&self, program: &str, arguments: &str) -> Output {
        Command::new("timeout")
            .arg(TOOL_LIMIT)
            .arg(program)
            .args(arguments.split_whitespace())
            .current_dir(self.path())
            .env("LANG", "C")
            .env("PIV_EXT_AUTH_KEY", "management-key")
            // No file of the user's has a say.
            .env("OPENSC_CONF", "/dev/null")
            .env("HOME", self.path())
            .output()
            .unwrap()
    }

    /// What a program writes, which has to succeed.
    fn run(&self, program: &str, arguments: &str) -> String {
        let output = self.tool(program, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{program} {arguments}: {text}{errors}"
        );
        text + &errors
    }

    fn pkcs11(&self, arguments: &str) -> String {
        self.run("pkcs11-tool", &format!("--module {MODULE} {arguments}"))
    }
}

fn carry_out<T, F>(card: &mut VirtualCard, course: impl FnOnce(Application) -> F) -> T
where
    F: Future<Output = Result<T, PivError>> + Send + 'static,
{
    let step = Dialogue::start(ChannelNumber::BASIC, course);
    let outcome = dialogue::run(step, |command| {
        run::<ExchangeError>(&command, Protocol::T1, Kind::Ordinary, |bytes| {
            Ok(card.transmit(bytes))
        })
    });
    outcome.unwrap().unwrap()
}

/// A card with keys in some slots, and certificates that OpenSSL has made for them.
fn card(scene: &Scene, keys: &[(Slot, Algorithm)]) -> VirtualCard {
    let mut card = VirtualCard::from_profile("piv").unwrap();
    scene.run(
        "openssl",
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 30",
    );
    for (slot, algorithm) in keys.iter().copied() {
        let public = carry_out(&mut card, move |mut card| async move {
            card.select().await?;
            let key = ManagementKey::new(&piv::MANAGEMENT_KEY).map_err(|_| PivError::BadData)?;
            card.authenticate_management(&key, &[5; 16]).await?;
            card.generate(Generate {
                slot,
                algorithm,
                pin_policy: None,
            })
            .await
        });
        let name = format!("{:02x}", slot.reference());
        fs::write(scene.path().join(format!("{name}.spki")), public.to_spki()).unwrap();
        scene.run(
            "openssl",
            &format!("pkey -pubin -inform DER -in {name}.spki -out {name}.pem"),
        );
        scene.run(
            "openssl",
            &format!(
                "x509 -new -force_pubkey {name}.pem -subj /CN=slot-{name} -days 30 -CA ca.pem -CAkey ca.key -outform DER \
                 -out {name}.crt"
            ),
        );
        let certificate = fs::read(scene.path().join(format!("{name}.crt"))).unwrap();
        carry_out(&mut card, move |mut card| async move {
            card.put_certificate(slot, &certificate).await
        });
    }
    card.reset();
    card
}

fn wait_for_card() {
    let context = Context::establish(Scope::User).unwrap();
    let deadline = Instant::now() + WAIT;
    let protocols = pcsc::Protocols::T0 | pcsc::Protocols::T1;
    while let Err(error) = context.connect(READER, ShareMode::Shared, protocols) {
        assert!(Instant::now() < deadline, "no card: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn opensc_lists_signs_decrypts_and_writes() {
    let scene = Scene {
        folder: TempDir::new().unwrap(),
    };
    let card = card(
        &scene,
        &[
            (Slot::AUTHENTICATION, Algorithm::P256),
            (Slot::SIGNATURE, Algorithm::Rsa2048),
            (Slot::KEY_MANAGEMENT, Algorithm::Rsa2048),
            (Slot::CARD_AUTHENTICATION, Algorithm::P384),
        ],
    );
    let pcscd = Pcscd::start().unwrap();
    let _inserted = pcscd.insert(0, card).unwrap();
    wait_for_card();
    fs::write(scene.path().join("message"), b"what is signed").unwrap();

    let name = scene.run("piv-tool", "--reader 0 --name");
    assert!(name.contains("Personal Identity Verification"), "{name}");
    let keys = scene.run("pkcs15-tool", "--reader 0 --list-keys");
    for key in ["PIV AUTH key", "SIGN key", "KEY MAN key", "CARD AUTH key"] {
        assert!(keys.contains(key), "{keys}");
    }
    let certificate = scene.run("pkcs15-tool", "--reader 0 --read-certificate 02");
    fs::write(scene.path().join("read.pem"), certificate).unwrap();
    scene.run("openssl", "x509 -in read.pem -outform DER -out read.crt");
    assert_eq!(
        fs::read(scene.path().join("read.crt")).unwrap(),
        fs::read(scene.path().join("9c.crt")).unwrap()
    );
    let objects = scene.pkcs11("--list-objects");
    assert!(objects.contains("Certificate Object"), "{objects}");

    // 9C takes the PIN for each signature, so the tool shows it twice.
    for (id, mechanism, key, verify) in [
        (
            "01",
            "ECDSA-SHA256 --signature-format openssl",
            "9a",
            "-sha256",
        ),
        ("02", "SHA256-RSA-PKCS", "9c", "-sha256"),
        (
            "02",
            "SHA256-RSA-PKCS-PSS",
            "9c",
            "-sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32",
        ),
    ] {
        let sign = format!("--login --pin 123456 --sign --id {id} --mechanism {mechanism}");
        scene.pkcs11(&format!(
            "{sign} --input-file message --output-file signature"
        ));
        let verified = scene.run(
            "openssl",
            &format!("dgst {verify} -verify {key}.pem -signature signature message"),
        );
        assert!(verified.contains("Verified OK"), "{verified}");
    }

    scene.run(
        "openssl",
        "pkeyutl -encrypt -pubin -inkey 9d.pem -in message -out encrypted",
    );
    scene.pkcs11(
        "--login --pin 123456 --decrypt --id 03 --mechanism RSA-PKCS --input-file encrypted --output-file text",
    );
    assert_eq!(
        fs::read(scene.path().join("text")).unwrap(),
        b"what is signed"
    );

    // With the management key, which is Triple DES.
    let key: Vec<String> = piv::MANAGEMENT_KEY
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    fs::write(scene.path().join("management-key"), key.join(":")).unwrap();
    // Its exit status is not about success.
    scene.tool(
        "piv-tool",
        "--reader 0 --admin M:9B:03 --cert 9E --in ca.pem",
    );
    let certificate = scene.run("pkcs15-tool", "--reader 0 --read-certificate 04");
    assert_eq!(
        certificate.trim(),
        fs::read_to_string(scene.path().join("ca.pem"))
            .unwrap()
            .trim()
    );
    let zeros = ["00"; 24].join(":");
    fs::write(scene.path().join("management-key"), zeros).unwrap();
    let refused = "--reader 0 --admin M:9B:03 --cert 9E --in read.pem";
    let refused = scene.tool("piv-tool", refused);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.contains("admin_mode failed"), "{errors}");

    // A wrong PIN costs a try.
    let login = format!("--module {MODULE} --login --pin 111111 --list-objects");
    assert!(!scene.tool("pkcs11-tool", &login).status.success());
    let asked = "--reader 0 --card-driver default --send-apdu 00:A4:04:00:09:A0:00:00:03:08:00:00:10:00 --send-apdu 00:20:00:80";
    let answers = scene.run("opensc-tool", asked);
    assert!(answers.contains("SW1=0x63, SW2=0xC2"), "{answers}");
}
