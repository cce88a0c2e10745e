/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys in tokens, from a page, on SoftHSM2. OpenSSL, outside of the browser, checks what the token made, and makes what it
//! is to decrypt.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::softhsm::PIN;
use e2e::token_page::{ELSEWHERE, OpenSsl, Page, Result, decode, der_signature};
use serde_json::{Value, json};

#[test]
fn a_key_is_made_in_the_token_found_by_name_and_signs() -> Result {
    let page = Page::softhsm()?;
    assert_eq!(
        page.run("cryptokeys.getKeyByName('invoices')")?,
        Value::Null
    );
    page.grant_token()?;
    let algorithms = [
        (
            "{ name: 'ECDSA', namedCurve: 'P-256' }",
            "{ name: 'ECDSA', hash: 'SHA-256' }",
            &["-sha256"][..],
        ),
        (
            "{ name: 'ECDSA', namedCurve: 'P-384' }",
            "{ name: 'ECDSA', hash: 'SHA-384' }",
            &["-sha384"],
        ),
        (
            "{ name: 'RSASSA-PKCS1-v1_5', modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-256' }",
            "'RSASSA-PKCS1-v1_5'",
            &["-sha256"],
        ),
        (
            "{ name: 'RSA-PSS', modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-256' }",
            "{ name: 'RSA-PSS', saltLength: 32 }",
            &[
                "-sha256",
                "-sigopt",
                "rsa_padding_mode:pss",
                "-sigopt",
                "rsa_pss_saltlen:32",
            ],
        ),
    ];
    for (index, (generation, signing, options)) in algorithms.into_iter().enumerate() {
        let made = page.run(&format!(
            "(async () => {{
                const pair = await token.generateKey({generation}, ['sign', 'verify'], {{ name: 'key {index}' }});
                const found = await cryptokeys.getKeyByName('key {index}');
                // What has no hash and no padding of its own is found with the usual ones.
                const key = found.algorithm.name === pair.privateKey.algorithm.name
                    ? found : await found.withAlgorithm(pair.privateKey.algorithm, ['sign']);
                const signature = await subtle.sign({signing}, key, bytes('a message'));
                return {{
                    spki: encode(await subtle.exportKey('spki', pair.publicKey)),
                    signature: encode(signature),
                    type: key.type, extractable: key.extractable, name: key.name, kind: key.constructor.name,
                    made: pair.privateKey.constructor.name,
                    verified: await subtle.verify({signing}, pair.publicKey, signature, bytes('a message')),
                    exported: await failure(subtle.exportKey('pkcs8', key)),
                }};
            }})()"
        ))?;
        for (name, expected) in [
            ("type", json!("private")),
            ("extractable", json!(false)),
            ("name", json!(format!("key {index}"))),
            ("made", json!("TokenCryptoKey")),
            ("verified", json!(true)),
            ("exported", json!("InvalidAccessError")),
        ] {
            assert_eq!(made[name], expected, "{name} of {made}");
        }
        let mut signature = decode(&made["signature"])?;
        if generation.contains("ECDSA") {
            signature = der_signature(&signature);
        }
        OpenSsl::new()?.verify(&decode(&made["spki"])?, &signature, b"a message", options)?;
    }
    // The token has them: another program sees them, and that they have never left it and cannot.
    let listed = page
        .token
        .pkcs11_tool(&["--list-objects", "--type", "privkey"])?;
    let access = "Access:     sensitive, always sensitive, never extractable, local";
    assert_eq!(listed.matches(access).count(), 4, "{listed}");
    assert_eq!(listed.matches("Usage:      sign\n").count(), 4, "{listed}");
    Ok(())
}

#[test]
fn others_find_nothing() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.run(
        "token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'invoices' }).then(() => null)",
    )?;
    assert_eq!(
        page.run("cryptokeys.getKeys().then(keys => keys.length)")?,
        1
    );
    page.reject()?;
    page.open(&page.browser.server.url_on(ELSEWHERE, "/page"))?;
    assert_eq!(
        page.run("cryptokeys.getKeyByName('invoices')")?,
        Value::Null
    );
    assert_eq!(page.run("cryptokeys.getKeys()")?, json!([]));
    assert_eq!(page.run("cryptokeys.getTokens()")?, json!([]));
    assert_eq!(
        page.run("failure(cryptokeys.requestKey({}))")?,
        "NotAllowedError"
    );
    assert_eq!(
        page.on_click("failure(cryptokeys.requestKey({}))")?,
        "NotFoundError"
    );
    // With a grant of its own for the token, it sees its own keys there: none.
    page.accept()?;
    page.grant_token()?;
    assert_eq!(
        page.run("cryptokeys.getKeyByName('invoices')")?,
        Value::Null
    );
    assert_eq!(page.run("cryptokeys.getKeys()")?, json!([]));
    Ok(())
}

#[test]
fn a_message_for_the_token_is_decrypted_in_it() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let spki = page.run(
        "(async () => {
            self.pair = await token.generateKey(
                { name: 'RSA-OAEP', modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-256' },
                ['encrypt', 'decrypt'], { name: 'post' });
            return encode(await subtle.exportKey('spki', pair.publicKey));
        })()",
    )?;
    let openssl = OpenSsl::new()?;
    let key = openssl.file("key.der", &decode(&spki)?)?;
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
        "subtle.decrypt('RSA-OAEP', pair.privateKey, decode('{encrypted}')).then(encode)"
    ))?;
    assert_eq!(decode(&decrypted)?, b"from outside");
    let again = page.run(
        "subtle.encrypt('RSA-OAEP', pair.publicKey, bytes('from inside'))
            .then(text => subtle.decrypt('RSA-OAEP', pair.privateKey, text)).then(encode)",
    )?;
    assert_eq!(decode(&again)?, b"from inside");
    let wrong =
        page.run("failure(subtle.decrypt('RSA-OAEP', pair.privateKey, new Uint8Array(256)))")?;
    assert_eq!(wrong, "OperationError");
    Ok(())
}

#[test]
fn a_secret_is_agreed_on_with_somebody_outside() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let openssl = OpenSsl::new()?;
    openssl.run(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "other.pem",
    ])?;
    openssl.run(&[
        "pkey",
        "-in",
        "other.pem",
        "-pubout",
        "-outform",
        "DER",
        "-out",
        "other.der",
    ])?;
    let other = BASE64.encode(openssl.read("other.der")?);
    let agreed = page.run(&format!(
        "(async () => {{
            const curve = {{ name: 'ECDH', namedCurve: 'P-256' }};
            const pair = await token.generateKey(curve, ['deriveBits'], {{ name: 'agreement' }});
            const other = await subtle.importKey('spki', decode('{other}'), curve, false, []);
            const secret = await subtle.deriveBits({{ name: 'ECDH', public: other }}, pair.privateKey, 256);
            return {{ spki: encode(await subtle.exportKey('spki', pair.publicKey)), secret: encode(secret) }};
        }})()"
    ))?;
    let key = openssl.file("key.der", &decode(&agreed["spki"])?)?;
    openssl.run(&[
        "pkey", "-pubin", "-inform", "DER", "-in", &key, "-pubout", "-out", "key.pem",
    ])?;
    openssl.run(&[
        "pkeyutl",
        "-derive",
        "-inkey",
        "other.pem",
        "-peerkey",
        "key.pem",
        "-out",
        "secret",
    ])?;
    assert_eq!(decode(&agreed["secret"])?, openssl.read("secret")?);
    Ok(())
}

/// The position paper's third case: a data key that is made in the token, leaves it wrapped by it, and comes back.
#[test]
fn a_data_key_leaves_the_token_wrapped_and_comes_back() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let outcome = page.run(
        "(async () => {
            const wrapping = await token.subtle.generateKey({ name: 'AES-KW', length: 256 }, false, ['wrapKey', 'unwrapKey']);
            const data = await token.generateKey(
                { name: 'AES-CBC', length: 256 }, ['encrypt', 'decrypt'], { name: 'data', wrappable: true });
            const iv = new Uint8Array(16);
            const text = await subtle.encrypt({ name: 'AES-CBC', iv }, data, bytes('kept'));
            const wrapped = await subtle.wrapKey('raw', data, wrapping, 'AES-KW');
            await token.deleteKey(data);
            const gone = await failure(subtle.decrypt({ name: 'AES-CBC', iv }, data, text));
            const back = await token.subtle.unwrapKey(
                'raw', wrapped, wrapping, 'AES-KW', { name: 'AES-CBC', length: 256 }, false, ['decrypt']);
            return {
                wrapped: new Uint8Array(wrapped).length,
                gone,
                exported: await failure(subtle.exportKey('raw', back)),
                text: encode(await subtle.decrypt({ name: 'AES-CBC', iv }, back, text)),
            };
        })()",
    )?;
    assert_eq!(outcome["wrapped"], 40, "{outcome}");
    assert_eq!(outcome["gone"], "InvalidStateError", "{outcome}");
    assert_eq!(outcome["exported"], "InvalidAccessError", "{outcome}");
    assert_eq!(decode(&outcome["text"])?, b"kept");
    Ok(())
}

/// The paper's second case: a server's secret comes into the token encrypted for a key of the token's, and is used there.
#[test]
fn a_servers_secret_comes_into_the_token_and_is_used_there() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let spki = page.run(
        "(async () => {
            self.transport = await token.generateKey(
                { name: 'RSA-OAEP', modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-1' },
                ['unwrapKey'], { name: 'transport' });
            return encode(await subtle.exportKey('spki', transport.publicKey));
        })()",
    )?;
    let secret = b"the server's API secret, 32 byte";
    let openssl = OpenSsl::new()?;
    let key = openssl.file("key.der", &decode(&spki)?)?;
    let message = openssl.file("secret", secret)?;
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
        "rsa_oaep_md:sha1",
    ])?;
    let wrapped = BASE64.encode(openssl.read("encrypted")?);
    let mac = page.run(&format!(
        "(async () => {{
            const key = await token.subtle.unwrapKey(
                'raw', decode('{wrapped}'), transport.privateKey, 'RSA-OAEP', {{ name: 'HMAC', hash: 'SHA-256' }}, false,
                ['sign', 'verify']);
            const mac = await subtle.sign('HMAC', key, bytes('a request'));
            return {{ mac: encode(mac), verified: await subtle.verify('HMAC', key, mac, bytes('a request')),
                      refused: await subtle.verify('HMAC', key, mac, bytes('another')),
                      exported: await failure(subtle.exportKey('raw', key)) }};
        }})()"
    ))?;
    assert_eq!(
        (&mac["verified"], &mac["refused"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(mac["exported"], "InvalidAccessError");
    let request = openssl.file("request", b"a request")?;
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    openssl.run(&[
        "mac",
        "-digest",
        "SHA256",
        "-macopt",
        &format!("hexkey:{hex}"),
        "-in",
        &request,
        "-binary",
        "-out",
        "mac",
        "HMAC",
    ])?;
    assert_eq!(decode(&mac["mac"])?, openssl.read("mac")?);
    Ok(())
}

#[test]
fn a_key_that_another_program_deletes_is_gone() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.run(
        "(async () => {
            self.pair = await token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'short-lived' });
            await subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, pair.privateKey, bytes('x'));
        })()",
    )?;
    for kind in ["privkey", "pubkey"] {
        page.token
            .pkcs11_tool(&["--delete-object", "--type", kind, "--label", "short-lived"])?;
    }
    let failure = page.run(
        "failure(subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, pair.privateKey, bytes('x')))",
    )?;
    assert_eq!(failure, "InvalidStateError");
    assert_eq!(
        page.run("cryptokeys.getKeyByName('short-lived')")?,
        Value::Null
    );
    Ok(())
}

#[test]
fn a_thousand_signatures_at_once() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    let outcome = page.run(
        "(async () => {
            const pair = await token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign', 'verify'], { name: 'busy' });
            const algorithm = { name: 'ECDSA', hash: 'SHA-256' };
            const messages = Array.from({ length: 1000 }, (_, number) => bytes(String(number)));
            const signatures = await Promise.all(messages.map(message => subtle.sign(algorithm, pair.privateKey, message)));
            const good = await Promise.all(signatures.map(
                (signature, number) => subtle.verify(algorithm, pair.publicKey, signature, messages[number])));
            return good.filter(Boolean).length;
        })()",
    )?;
    assert_eq!(outcome, 1000);
    Ok(())
}

#[test]
fn a_module_that_is_killed_costs_what_was_under_way() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.run(
        "(async () => {
            self.pair = await token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'robust' });
            self.algorithm = { name: 'RSASSA-PKCS1-v1_5', modulusLength: 4096, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-256' };
            self.long = token.generateKey(algorithm, ['sign'], { name: 'long' }).then(() => 'made', error => error.name);
        })()",
    )?;
    for worker in page.browser.shell.token_processes("module-worker") {
        worker.kill();
    }
    let long = page.run("long")?;
    assert!(long == "OperationError" || long == "made", "{long}");
    let signed = page.run(
        "subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, pair.privateKey, bytes('x')).then(signature => signature.byteLength)",
    )?;
    assert_eq!(signed, 64);
    Ok(())
}

#[test]
fn a_worker_of_the_page_uses_a_key_and_nobody_keeps_it() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.browser.server.route("/worker.js", |_| {
        e2e::server::Response::new(
            200,
            "text/javascript",
            "onmessage = async event => {
                const algorithm = { name: 'ECDSA', hash: 'SHA-256' };
                const signature = await crypto.subtle.sign(algorithm, event.data, new Uint8Array(3));
                postMessage(signature.byteLength);
            };",
        )
    });
    let outcome = page.run(
        "(async () => {
            const pair = await token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'shared' });
            const worker = new Worker('/worker.js');
            const answer = new Promise((resolve, reject) => {
                worker.onmessage = event => resolve(event.data);
                worker.onmessageerror = worker.onerror = () => reject(new Error('no answer'));
            });
            worker.postMessage(pair.privateKey);
            let state = 'kept';
            try { history.replaceState(pair.privateKey, ''); } catch (error) { state = error.name; }
            return { length: await answer, state };
        })()",
    )?;
    assert_eq!(outcome, json!({ "length": 64, "state": "DataCloneError" }));
    Ok(())
}

#[test]
fn a_refused_pin_is_a_refusal() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.reject()?;
    let failure = page.run(
        "failure(token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'never' }))",
    )?;
    assert_eq!(failure, "NotAllowedError");
    Ok(())
}

/// The log of a browser has neither PINs nor names of origins.
#[test]
fn the_log_has_no_pin() -> Result {
    let page = Page::softhsm()?;
    page.grant_token()?;
    page.run("token.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, ['sign'], { name: 'k' }).then(() => null)")?;
    let log = page.browser.shell.log();
    assert!(!log.contains(PIN), "{log}");
    assert!(Path::new(&page.token.tokens()).exists());
    Ok(())
}
