/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Prompts and a page of tokens with sample data, friendly and hostile, for tests and screenshots.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use token_traits::Origin;
use token_traits::keys::Protection;
use token_traits::port::ElementType;
use token_traits::prompt::{
    AuditEntry, GrantId, GrantInfo, GrantKind, Overview, PromptAnswer, PromptCertificate,
    PromptHost, PromptId, PromptKey, PromptReader, PromptRequest, PromptToken, Question,
};

use crate::chrome::tokens_page::{OverviewCallback, TokenOverview};

/// Asks the user everything that is named, and prints the answers.
pub fn show(host: &dyn PromptHost, webview: u64, names: &[String]) {
    for (name, id) in names.iter().zip(1..) {
        let Some(request) = prompt(name, PromptId(id), webview) else {
            eprintln!("servo-tokens: there is no sample prompt {name:?}");
            continue;
        };
        let name = name.clone();
        host.show(
            request,
            Box::new(move |answer| match answer {
                PromptAnswer::Pin(pin) => println!(
                    "sample prompt {name}: a PIN of {}",
                    pin.as_str().chars().count()
                ),
                answer => println!("sample prompt {name}: {answer:?}"),
            }),
        );
    }
}

fn reader(name: &str, element_type: ElementType, present: bool) -> PromptReader {
    PromptReader {
        name: name.to_owned(),
        element_type,
        present,
    }
}

fn hostile_name() -> String {
    format!(
        "Safe\u{202E}redaer \u{200B}\u{7}\n{}",
        "reader ".repeat(1_500)
    )
}

/// A sample prompt.
pub fn prompt(name: &str, id: PromptId, webview: u64) -> Option<PromptRequest> {
    let site = "https://www.bank.example";
    let long_site = format!(
        "https://www.bank.example.{}evil.example:8443",
        "a-long-label.".repeat(14)
    );
    let (origin, top_level, question) = match name {
        "chooser" => (
            site,
            site,
            Question::ChooseReader {
                readers: vec![
                    reader("ACS ACR39U ICC Reader 00 00", ElementType::SmartCard, true),
                    reader("Embedded virtual card", ElementType::Embedded, true),
                    reader(
                        "Yubico YubiKey OTP+FIDO+CCID 01 00",
                        ElementType::SmartCard,
                        false,
                    ),
                ],
            },
        ),
        "one-reader" => (
            site,
            site,
            Question::ChooseReader {
                readers: vec![reader("Embedded virtual card", ElementType::Embedded, true)],
            },
        ),
        "no-reader" => (
            site,
            site,
            Question::ChooseReader {
                readers: Vec::new(),
            },
        ),
        "hostile-chooser" => (
            long_site.as_str(),
            "https://xn--80ak6aa92e.example",
            Question::ChooseReader {
                readers: (0..12)
                    .map(|index| match index {
                        0 => reader(&hostile_name(), ElementType::SmartCard, true),
                        1 => reader("", ElementType::Other, false),
                        2 => reader(
                            "\u{5e7}\u{5d5}\u{5e8}\u{5d0} \u{2067}\u{5d0}",
                            ElementType::Sd,
                            true,
                        ),
                        index => reader(&format!("Reader {index}"), ElementType::Uicc, true),
                    })
                    .collect(),
            },
        ),
        "applet" => (
            site,
            site,
            Question::UseApplet {
                reader: "ACS ACR39U ICC Reader 00 00".into(),
                applet: Some(vec![0xA0, 0, 0, 0x02, 0x47, 0x10, 0x01]),
            },
        ),
        "unnamed-applet" => (
            site,
            site,
            Question::UseApplet {
                reader: "ACS ACR39U ICC Reader 00 00".into(),
                applet: None,
            },
        ),
        "hostile-applet" => (
            "https://ads.example",
            site,
            Question::UseApplet {
                reader: hostile_name(),
                applet: Some(vec![0xF0; 16]),
            },
        ),
        "token" => (
            site,
            site,
            Question::ChooseToken {
                tokens: vec![
                    token(
                        "Company card",
                        "ACS ACR39U ICC Reader 00 00",
                        Protection::Hardware,
                    ),
                    token("Test", "SoftHSM", Protection::Software),
                ],
            },
        ),
        "no-token" => (site, site, Question::ChooseToken { tokens: Vec::new() }),
        "key" => (
            site,
            site,
            Question::ChooseKey {
                keys: vec![
                    PromptKey {
                        name: "Signature".into(),
                        token: token(
                            "Company card",
                            "ACS ACR39U ICC Reader 00 00",
                            Protection::Hardware,
                        ),
                        certificate: Some(PromptCertificate {
                            subject: "Ada Lovelace".into(),
                            issuer: "Example Company Staff CA".into(),
                            expires: "2028-12-31".into(),
                        }),
                    },
                    PromptKey {
                        name: "invoices".into(),
                        token: token("Test", "SoftHSM", Protection::Software),
                        certificate: None,
                    },
                ],
            },
        ),
        "hostile-key" => (
            long_site.as_str(),
            "https://xn--80ak6aa92e.example",
            Question::ChooseKey {
                keys: (0..12)
                    .map(|_| PromptKey {
                        name: hostile_name(),
                        token: token(&hostile_name(), &hostile_name(), Protection::Isolated),
                        certificate: Some(PromptCertificate {
                            subject: hostile_name(),
                            issuer: hostile_name(),
                            expires: hostile_name(),
                        }),
                    })
                    .collect(),
            },
        ),
        "share-key" => (
            site,
            site,
            Question::ShareKey {
                token: "Company card".into(),
                name: "invoices".into(),
                origins: [
                    "https://invoices.example",
                    "https://archive.bank.example:8443",
                ]
                .into_iter()
                .filter_map(Origin::new)
                .collect(),
            },
        ),
        "pin" | "last-pin" => (
            site,
            site,
            Question::EnterPin {
                token: "PIV card of Ada Lovelace".into(),
                was_wrong: name != "pin",
                tries_left: Some(if name == "pin" { 3 } else { 1 }),
                min_length: 6,
                max_length: 8,
            },
        ),
        "hostile-pin" => (
            long_site.as_str(),
            long_site.as_str(),
            Question::EnterPin {
                token: hostile_name(),
                was_wrong: true,
                tries_left: None,
                min_length: 4,
                max_length: 32,
            },
        ),
        _ => return None,
    };
    Some(PromptRequest {
        id,
        replaces: None,
        webview,
        origin: Origin::new(origin)?,
        top_level_origin: Origin::new(top_level)?,
        question,
    })
}

fn token(label: &str, place: &str, protection: Protection) -> PromptToken {
    PromptToken {
        label: label.into(),
        place: place.into(),
        protection,
    }
}

/// Sample data for the page of tokens, in which grants can be revoked.
pub fn overview(name: &str) -> Option<Arc<dyn TokenOverview>> {
    let overview = match name {
        "empty" => Overview::default(),
        "full" => full_overview()?,
        _ => return None,
    };
    Some(Arc::new(SampleOverview(Mutex::new(overview))))
}

struct SampleOverview(Mutex<Overview>);

impl TokenOverview for SampleOverview {
    fn request(&self, callback: OverviewCallback) {
        if let Ok(overview) = self.0.lock() {
            callback(overview.clone());
        }
    }

    fn revoke(&self, grant: GrantId) {
        println!("sample tokens: revoked {}", grant.0);
        if let Ok(mut overview) = self.0.lock() {
            overview.grants.retain(|other| other.id != Some(grant));
        }
    }
}

fn full_overview() -> Option<Overview> {
    let now = SystemTime::now();
    let before = |seconds| now.checked_sub(Duration::from_secs(seconds));
    let bank = Origin::new("https://www.bank.example")?;
    let long = Origin::new(&format!(
        "https://{}evil.example:8443",
        "a-long-label.".repeat(14)
    ))?;
    let embedded = "Embedded virtual card".to_owned();
    Some(Overview {
        readers: vec![
            reader("ACS ACR39U ICC Reader 00 00", ElementType::SmartCard, true),
            reader(&embedded, ElementType::Embedded, true),
            reader(&hostile_name(), ElementType::Other, false),
        ],
        grants: vec![
            GrantInfo {
                id: Some(GrantId(1)),
                origin: Some(bank.clone()),
                top_level_origin: Some(bank.clone()),
                what: GrantKind::Reader {
                    reader: embedded.clone(),
                },
                remembered: true,
                created: before(86_400 * 40),
                last_used: before(300),
            },
            GrantInfo {
                id: Some(GrantId(2)),
                origin: Some(long.clone()),
                top_level_origin: Some(bank.clone()),
                what: GrantKind::Applet {
                    applet: Some(vec![0xA0, 0, 0, 0x02, 0x47, 0x10, 0x01]),
                    allowed: true,
                },
                remembered: false,
                created: before(4_000),
                last_used: None,
            },
            GrantInfo {
                id: Some(GrantId(3)),
                origin: Some(long.clone()),
                top_level_origin: None,
                what: GrantKind::Reader {
                    reader: hostile_name(),
                },
                remembered: false,
                created: None,
                last_used: None,
            },
            GrantInfo {
                id: None,
                origin: Some(bank.clone()),
                top_level_origin: Some(bank.clone()),
                what: GrantKind::Automation { allowed: true },
                remembered: false,
                created: None,
                last_used: before(20),
            },
            GrantInfo {
                id: None,
                origin: None,
                top_level_origin: None,
                what: GrantKind::Applet {
                    applet: None,
                    allowed: false,
                },
                remembered: true,
                created: None,
                last_used: None,
            },
        ],
        audit: vec![
            AuditEntry {
                time: before(300)?,
                origin: bank.clone(),
                reader: embedded.clone(),
                applet: Some(b"\xF0SERVO\x01\x01".to_vec()),
                decision: "channel opened".into(),
            },
            AuditEntry {
                time: before(7_000)?,
                origin: bank,
                reader: embedded,
                applet: None,
                decision: "reader granted".into(),
            },
            AuditEntry {
                time: before(90_000)?,
                origin: long,
                reader: hostile_name(),
                applet: Some(vec![0xF0; 16]),
                decision: "refused by the card's rules".into(),
            },
        ],
        problem: Some("Nothing can be remembered: the disk is full.".into()),
    })
}
