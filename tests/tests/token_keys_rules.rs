/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The rules that the position paper has for keys in tokens. `docs/token-keys.md` says which test is about which rule.

use e2e::softhsm::SoftHsm;
use e2e::token_page::{ELSEWHERE, LABEL, Page, Result};
use serde_json::{Value, json};

fn page() -> Result<Page<SoftHsm>> {
    let page = Page::softhsm()?;
    page.grant_token()?;
    Ok(page)
}

#[test]
fn r3_private_and_secret_keys_do_not_leave() -> Result {
    let page = page()?;
    let outcomes = page.run(
        "(async () => {
            const { privateKey } = await token.generateKey(curve, ['sign'], { name: 'private' });
            const aes = { name: 'AES-CBC', length: 256 };
            const secret = await token.generateKey(aes, ['encrypt', 'decrypt'], { name: 'secret' });
            const wrapping = await token.subtle.generateKey({ name: 'AES-KW', length: 256 }, false, ['wrapKey', 'unwrapKey']);
            const software = await subtle.generateKey({ name: 'AES-KW', length: 256 }, false, ['wrapKey']);
            const outcomes = {};
            for (const format of ['pkcs8', 'jwk'])
                outcomes['export private ' + format] = await failure(subtle.exportKey(format, privateKey));
            for (const format of ['raw', 'jwk'])
                outcomes['export secret ' + format] = await failure(subtle.exportKey(format, secret));
            outcomes['wrap private'] = await failure(subtle.wrapKey('pkcs8', privateKey, wrapping, 'AES-KW'));
            outcomes['wrap secret'] = await failure(subtle.wrapKey('raw', secret, wrapping, 'AES-KW'));
            outcomes['wrap by software'] = await failure(subtle.wrapKey('raw', secret, software, 'AES-KW'));
            outcomes['extractable'] = await failure(token.subtle.generateKey(curve, true, ['sign']));
            return outcomes;
        })()",
    )?;
    for (attempt, outcome) in outcomes.as_object().ok_or("no outcomes")? {
        let wanted = match attempt.as_str() {
            "extractable" => "NotSupportedError",
            _ => "InvalidAccessError",
        };
        assert_eq!(outcome, wanted, "{attempt}");
    }
    Ok(())
}

#[test]
fn r4_keys_are_found_by_their_attributes() -> Result {
    let page = page()?;
    page.run(
        "(async () => {
            self.pair = await token.generateKey(curve, ['sign'], { name: 'ec' });
            await token.generateKey(rsa('RSA-OAEP'), ['decrypt'], { name: 'rsa' });
            await token.generateKey({ name: 'AES-CBC', length: 256 }, ['encrypt', 'decrypt'], { name: 'aes' });
            self.spki = await subtle.exportKey('spki', pair.publicKey);
        })()",
    )?;
    for (query, names) in [
        ("{}", json!(["aes", "ec", "rsa"])),
        ("{ name: 'ec' }", json!(["ec"])),
        ("{ name: 'e' }", json!([])),
        ("{ publicKey: spki }", json!(["ec"])),
        (
            "{ keyIdentifier: decode(pair.privateKey.id) }",
            json!(["ec"]),
        ),
        ("{ algorithm: 'ECDSA' }", json!(["ec"])),
        (
            "{ algorithm: { name: 'ECDSA', namedCurve: 'P-384' } }",
            json!([]),
        ),
        (
            "{ algorithm: { name: 'RSA-OAEP', hash: 'SHA-256', modulusLength: 2048 } }",
            json!(["rsa"]),
        ),
        ("{ algorithm: { name: 'AES-CBC', length: 128 } }", json!([])),
        ("{ type: 'secret' }", json!(["aes"])),
        ("{ usages: ['decrypt'] }", json!(["aes", "rsa"])),
        ("{ usages: ['decrypt', 'sign'] }", json!([])),
        ("{ token }", json!(["aes", "ec", "rsa"])),
        ("{ token: { label: 'another' } }", json!([])),
        ("{ minimumProtection: 'hardware' }", json!([])),
        (
            "{ provenance: 'generated', type: 'private' }",
            json!(["ec", "rsa"]),
        ),
        ("{ provenance: 'imported' }", json!([])),
        ("{ attestable: true }", json!([])),
    ] {
        let found = page.run(&format!(
            "cryptokeys.getKeys({query}).then(keys => keys.map(key => key.name).sort())"
        ))?;
        assert_eq!(found, names, "{query}");
    }
    Ok(())
}

/// What is there and not allowed is as what is not there, in words as well.
#[test]
fn r5_what_an_origin_may_not_use_is_as_if_it_were_not_there() -> Result {
    let page = page()?;
    page.run("token.generateKey(curve, ['sign'], { name: 'there' }).then(() => null)")?;
    page.open_elsewhere()?;
    let look = |name: &str| -> Result<Value> {
        let silent = page.run(&format!(
            "(async () => [await cryptokeys.getKeyByName('{name}'), await cryptokeys.getKeys({{ name: '{name}' }})])()"
        ))?;
        let asked = page.on_click(&format!(
            "cryptokeys.requestKey({{ name: '{name}' }}).then(() => 'found', error => [error.name, error.message])"
        ))?;
        Ok(json!([silent, asked]))
    };
    let (there, not_there) = (look("there")?, look("not there")?);
    assert_eq!(there, not_there);
    assert_eq!(there[0], json!([null, []]));
    assert_eq!(there[1][0], "NotFoundError");
    page.grant_token()?;
    assert_eq!(look("there")?, look("not there")?);
    Ok(())
}

#[test]
fn r6_r7_a_page_sees_the_tokens_that_the_user_has_chosen() -> Result {
    let page = Page::softhsm()?;
    page.token.add_token("Another card")?;
    assert_eq!(page.run("cryptokeys.getTokens()")?, json!([]));
    // The page cannot choose for the user, nor ask out of the blue.
    assert_eq!(
        page.run("failure(cryptokeys.requestToken())")?,
        "NotAllowedError"
    );
    page.reject()?;
    assert_eq!(
        page.on_click("failure(cryptokeys.requestToken())")?,
        "NotAllowedError"
    );
    assert_eq!(page.run("cryptokeys.getTokens()")?, json!([]));
    page.accept()?;
    let chosen = page.on_click(&format!(
        "cryptokeys.requestToken({{ label: '{LABEL}' }}).then(token => token.label)"
    ))?;
    assert_eq!(chosen, LABEL);
    let labels = "cryptokeys.getTokens().then(tokens => tokens.map(token => token.label))";
    assert_eq!(page.run(labels)?, json!([LABEL]));
    // Two origins cannot tell that they see the same one.
    let id = "cryptokeys.getTokens().then(([token]) => token.id)";
    let own = page.run(id)?;
    page.open_elsewhere()?;
    page.on_click(&format!(
        "cryptokeys.requestToken({{ label: '{LABEL}' }}).then(token => token.label)"
    ))?;
    assert_ne!(page.run(id)?, own);
    Ok(())
}

#[test]
fn r8_a_key_serves_the_origins_in_its_list() -> Result {
    let page = page()?;
    let other = page.run(&format!(
        "new URL('{}').origin",
        page.browser.server.url_on(ELSEWHERE, "/page")
    ))?;
    let origins = page.run(&format!(
        "token.generateKey(curve, ['sign'], {{ name: 'common', origins: [location.origin, {other}] }})
            .then(pair => pair.privateKey.origins)"
    ))?;
    assert_eq!(origins.as_array().map(Vec::len), Some(2), "{origins}");
    page.run("token.generateKey(curve, ['sign'], { name: 'own' }).then(() => null)")?;
    page.open_elsewhere()?;
    page.grant_token()?;
    let seen = page.run(
        "(async () => {
            const [key, ...others] = await cryptokeys.getKeys();
            const [token] = await cryptokeys.getTokens();
            return {
                name: key.name, others: others.length, origins: key.origins,
                signed: (await subtle.sign(ecdsa, key, bytes('x'))).byteLength,
                // It is the other's.
                deleted: await failure(token.deleteKey(key)),
            };
        })()",
    )?;
    assert_eq!(
        seen,
        json!({ "name": "common", "others": 0, "origins": [other], "signed": 64, "deleted": "NotAllowedError" })
    );
    // The list is in the token, with the key.
    let listed = page
        .token
        .pkcs11_tool(&["--list-objects", "--type", "data"])?;
    assert!(listed.contains("Data object"), "{listed}");
    Ok(())
}

/// The other origin never gets the key as an object, either.
#[test]
fn r9_a_key_is_not_cloned_to_another_origin() -> Result {
    let page = page()?;
    page.browser.server.page(
        "/frame",
        "<!DOCTYPE html><script>
            onmessage = event => parent.postMessage(String(event.data), '*');
            onmessageerror = () => parent.postMessage('messageerror', '*');
        </script>",
    );
    for (host, wanted) in [
        (None, "[object TokenCryptoKey]"),
        (Some(ELSEWHERE), "messageerror"),
    ] {
        let url = match host {
            Some(host) => page.browser.server.url_on(host, "/frame"),
            None => page.browser.server.url("/frame"),
        };
        let got = page.run(&format!(
            "(async () => {{
                self.pair ??= await token.generateKey(curve, ['sign'], {{ name: 'k' }});
                const frame = document.createElement('iframe');
                frame.src = '{url}';
                const loaded = new Promise(resolve => {{ frame.onload = resolve; }});
                document.body.append(frame);
                await loaded;
                const answer = new Promise(resolve => {{ onmessage = event => resolve(event.data); }});
                frame.contentWindow.postMessage(pair.privateKey, '*');
                return answer;
            }})()"
        ))?;
        assert_eq!(got, wanted, "{host:?}");
    }
    Ok(())
}

#[test]
fn r11_what_the_user_allowed_a_site_can_be_taken_back() -> Result {
    let page = page()?;
    page.run("token.generateKey(curve, ['sign'], { name: 'k' }).then(pair => { self.key = pair.privateKey; })")?;
    let sign = "failure(subtle.sign(ecdsa, key, bytes('x')))";
    assert_eq!(page.run(sign)?, "no failure");
    assert_eq!(
        page.run("cryptokeys.getKeyByName('k').then(key => key.name)")?,
        "k"
    );
    let permission = json!({ "name": "token-keys" });
    page.browser
        .session
        .set_permission(permission.clone(), "denied")?;
    assert_eq!(page.run(sign)?, "NotAllowedError");
    assert_eq!(page.run("cryptokeys.getKeyByName('k')")?, Value::Null);
    page.browser.session.set_permission(permission, "prompt")?;
    assert_eq!(page.run(sign)?, "no failure");
    // The site gives it back itself.
    page.run("cryptokeys.forget(token).then(() => null)")?;
    // Its user is logged out with that, and nothing is known of what is in the token.
    let failure = page.run(sign)?;
    assert!(
        failure == "NotAllowedError" || failure == "InvalidStateError",
        "{failure}"
    );
    assert_eq!(page.run("cryptokeys.getKeys()")?, json!([]));
    page.grant_token()?;
    assert_eq!(page.run(sign)?, "no failure");
    Ok(())
}

#[test]
fn r16_keys_are_used_through_subtle_crypto() -> Result {
    let page = page()?;
    let kinds = page.run(
        "(async () => {
            const { privateKey } = await token.generateKey(curve, ['sign'], { name: 'k' });
            const plain = await token.subtle.generateKey(curve, false, ['sign']);
            return {
                operations: Object.getOwnPropertyNames(SubtleCrypto.prototype)
                    .filter(name => [TokenCryptoKey, NamedCryptoKey, CryptoToken, CryptoKeys].some(
                        one => name in one.prototype && name !== 'constructor' && name !== 'supports')).sort(),
                isKey: privateKey instanceof CryptoKey && privateKey instanceof NamedCryptoKey,
                plain: plain.privateKey.constructor.name,
                signed: (await crypto.subtle.sign(ecdsa, plain.privateKey, bytes('x'))).byteLength,
            };
        })()",
    )?;
    // What makes keys under a name in a token is no operation with a key.
    assert_eq!(
        kinds,
        json!({ "operations": ["generateKey", "getPublicKey", "unwrapKey"], "isKey": true, "plain": "CryptoKey", "signed": 64 })
    );
    Ok(())
}
