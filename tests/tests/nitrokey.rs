/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A card that nobody here wrote: Nitrokey's PIV application, behind a real `pcscd`.

use std::time::Duration;

use e2e::browser::Browser;
use e2e::process::wait_for;
use e2e::shell::{Options, PCSC};
use nitrokey_card::PivCard;
use serde_json::{Value, json};
use virtual_card::test_support::Pcscd;

/// How long PC/SC may take to notice a card.
const NOTICE: Duration = Duration::from_secs(10);

/// Sends one command to the PIV application (SP 800-73-4: its AID, without the version).
fn ask(browser: &Browser, method: &str, header: &str, data: &str) -> Result<Value, String> {
    let expression = format!(
        r#"(async () => {{
            const session = await (await reader()).openSession();
            try {{
                const channel = await session.{method}(hex("A000000308000010000100"));
                return answer(await channel.transmit(command("{header}{data}", 0)));
            }} finally {{
                await session.close();
            }}
        }})()"#
    );
    browser.evaluate(&expression).unwrap()
}

#[test]
fn a_page_reads_the_piv_discovery_object() {
    let pcscd = Pcscd::start().unwrap();
    let _card = pcscd.insert(0, PivCard::new().unwrap()).unwrap();
    let options = Options {
        token_config: PCSC.to_owned(),
        ..Options::default()
    };
    let browser = Browser::start(&options).unwrap();
    browser.grant().unwrap();
    let noticed = wait_for(NOTICE, || browser.evaluate("reader()").unwrap().ok());
    assert!(noticed.is_some(), "no card");

    // It has the basic channel only, and says so in one way before an application is selected and in another after.
    let refused = ask(&browser, "openSupplementaryChannel", "00CB3FFF", "5C017E").unwrap_err();
    assert!(refused.starts_with("SENoChannelException:"), "{refused}");

    // GET DATA, tag 7E. SP 800-73-4 part 1 section 3.3.2: the application's AID and the PIN usage
    // policy; the default policy is the application's PIN alone.
    let discovery = ask(&browser, "openBasicChannel", "00CB3FFF", "5C017E");
    let text = discovery.as_ref().unwrap().as_str().unwrap();
    assert!(
        text.starts_with("7e124f0ba0000003080000100001005f2f02"),
        "{text}"
    );
    assert!(text.ends_with("9000"), "{text}");
    assert_eq!(text.len(), 2 * (2 + 18 + 2), "{text}");

    // A new card has no certificate: file not found.
    let certificate = ask(&browser, "openBasicChannel", "00CB3FFF", "5C035FC105");
    assert_eq!(certificate, Ok(json!("6a82")));

    let refused = ask(&browser, "openSupplementaryChannel", "00CB3FFF", "5C017E").unwrap_err();
    assert!(refused.starts_with("SENoChannelException:"), "{refused}");
}
