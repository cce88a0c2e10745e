/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Remote provisioning: a server's page makes a key in a token, requests a certificate for it with PKI.js, as that comes from
//! npm, and installs what OpenSSL's authority issues; later it replaces key and certificate, and removes all of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::server::Server;
use e2e::softhsm::{PIN, SoftHsm};
use e2e::swtpm::SoftwareTpm;
use e2e::token_page::{LABEL, OpenSsl, Page, Result, decode};
use serde_json::{Value, json};

/// PKI.js and what it needs are modules of their own.
const PAGE: &str = r#"<!DOCTYPE html>
<title>provisioning</title>
<script type=importmap>
{ "imports": {
    "pkijs": "/npm/pkijs/build/index.js",
    "asn1js": "/npm/asn1js/build/index.js",
    "bytestreamjs": "/npm/bytestreamjs/build/index.js",
    "@peculiar/utils": "/npm/@peculiar/utils/build/index.js",
    "@noble/hashes/": "/npm/@noble/hashes/"
} }
</script>
<script type=module>
    import * as pkijs from "pkijs";
    import * as asn1js from "asn1js";
    Object.assign(self, { pkijs, asn1js });
    self.loaded = true;
</script>
<button id=go style="padding: 2em">Go</button>
"#;

const SCRIPT: &str = r#"
    self.isLoaded = async () => {
        while (!self.loaded)
            await new Promise(resolve => setTimeout(resolve, 20));
        return true;
    };
    self.attribute = (type, value) => new pkijs.AttributeTypeAndValue({ type, value: new asn1js.Utf8String({ value }) });
    // A request for a certificate, signed with the token's key.
    self.request = async (pair, commonName) => {
        const request = new pkijs.CertificationRequest({ version: 0, attributes: [] });
        request.subject.typesAndValues.push(attribute("2.5.4.10", "Company"), attribute("2.5.4.3", commonName));
        await request.subjectPublicKeyInfo.importKey(pair.publicKey);
        await request.sign(pair.privateKey, "SHA-256");
        return encode(request.toSchema(true).toBER());
    };
"#;

fn page<T>(token: T, config: &str) -> Result<Page<T>> {
    let modules = e2e::npm::directory()?.join("node_modules");
    let server = Server::builder().root("/npm/", modules).start()?;
    let page = Page::start_on(server, token, config, PIN)?;
    page.browser.server.page("/provisioning", PAGE);
    page.open(&page.browser.server.url("/provisioning"))?;
    page.browser.session.execute(SCRIPT, &[])?;
    assert_eq!(page.run("isLoaded()")?, true);
    Ok(page)
}

/// An authority of OpenSSL's.
struct Authority(OpenSsl);

impl Authority {
    fn new() -> Result<Self> {
        let openssl = OpenSsl::new()?;
        openssl.run(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/O=Company/CN=Authority",
            "-days",
            "2",
        ])?;
        Ok(Self(openssl))
    }

    /// Checks a request, and issues a certificate in DER.
    fn issue(&self, request: &[u8], common_name: &str) -> Result<Vec<u8>> {
        let file = self.0.file("request.der", request)?;
        let said = self.0.run(&[
            "req", "-inform", "DER", "-in", &file, "-verify", "-noout", "-subject", "-nameopt",
            "RFC2253",
        ])?;
        assert!(said.contains(&format!("CN={common_name}")), "{said}");
        let extensions = self.0.file(
            "extensions",
            b"keyUsage = critical, digitalSignature\nextendedKeyUsage = clientAuth\n",
        )?;
        self.0.run(&[
            "x509",
            "-req",
            "-inform",
            "DER",
            "-in",
            &file,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            &extensions,
            "-outform",
            "DER",
            "-out",
            "certificate.der",
        ])?;
        self.0.read("certificate.der")
    }

    /// Its name in DER, as it is in the certificates that it issued.
    fn name(&self) -> Result<Vec<u8>> {
        // SEQUENCE { SET { SEQUENCE { OID, UTF8String } }... }
        let attribute = |oid: u8, text: &str| {
            let value = sequence(0x0c, text.as_bytes());
            let oid = [0x06, 0x03, 0x55, 0x04, oid];
            sequence(0x31, &sequence(0x30, &[&oid[..], &value].concat()))
        };
        Ok(sequence(
            0x30,
            &[attribute(10, "Company"), attribute(3, "Authority")].concat(),
        ))
    }
}

/// A short element in DER.
fn sequence(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    [&[tag, length], content].concat()
}

/// The page makes a key, requests a certificate, and installs it. Gives the certificate.
fn provision<T>(
    page: &Page<T>,
    authority: &Authority,
    name: &str,
    algorithm: &str,
) -> Result<Vec<u8>> {
    let request = page.run(&format!(
        "(async () => {{
            self.pair = await token.generateKey({algorithm}, ['sign', 'verify'], {{ name: '{name}' }});
            return request(pair, '{name}');
        }})()"
    ))?;
    let certificate = authority.issue(&decode(&request)?, name)?;
    let encoded = BASE64.encode(&certificate);
    let chain = page.run(&format!(
        "(async () => {{
            await token.installCertificate(pair.privateKey, decode('{encoded}'));
            const found = await cryptokeys.getKeyByName('{name}');
            return (await found.getCertificateChain()).map(encode);
        }})()"
    ))?;
    assert_eq!(chain, json!([encoded]));
    Ok(certificate)
}

/// What the page does with a token that does all of it.
fn provision_rotate_and_remove<T>(page: &Page<T>) -> Result {
    let authority = Authority::new()?;
    assert!(page.grant_token()?.is_string());
    let first = provision(page, &authority, "first", "curve")?;
    let issuer = BASE64.encode(authority.name()?);
    // What the authority has issued is found by its name, and by what it is for.
    for (query, count) in [
        (format!("{{ certificateIssuers: [decode('{issuer}')] }}"), 1),
        ("{ certificateIssuers: [bytes('nobody')] }".to_owned(), 0),
        (
            "{ certificateKeyUsages: ['digitalSignature'] }".to_owned(),
            1,
        ),
        ("{ certificateKeyUsages: ['keyCertSign'] }".to_owned(), 0),
        ("{ extendedKeyUsages: ['1.3.6.1.5.5.7.3.2'] }".to_owned(), 1),
        ("{ extendedKeyUsages: ['1.3.6.1.5.5.7.3.1'] }".to_owned(), 0),
        ("{ validCertificate: true }".to_owned(), 1),
        ("{ validCertificate: false }".to_owned(), 0),
    ] {
        let found = page.run(&format!(
            "cryptokeys.getKeys({query}).then(keys => keys.length)"
        ))?;
        assert_eq!(found, count, "{query}");
    }
    // Another key's certificate is none of this key's, nor is what is no certificate.
    let second = provision(page, &authority, "second", "rsa('RSASSA-PKCS1-v1_5')")?;
    assert_ne!(first, second);
    let (first, second) = (BASE64.encode(first), BASE64.encode(second));
    for wrong in [&first, "AAAA"] {
        let failure = page.run(&format!(
            "failure(token.installCertificate(pair.privateKey, decode('{wrong}')))"
        ))?;
        assert_eq!(failure, "DataError", "{wrong}");
    }
    // The first goes, the second stays.
    let rotated = page.run(
        "(async () => {
            const old = await cryptokeys.getKeyByName('first');
            await token.deleteKey(old);
            const left = await cryptokeys.getKeys();
            return {
                found: await cryptokeys.getKeyByName('first'),
                used: await failure(subtle.sign(ecdsa, old, bytes('x'))),
                left: left.map(key => key.name),
                chain: (await left[0].getCertificateChain()).map(encode),
                signed: (await subtle.sign('RSASSA-PKCS1-v1_5', left[0], bytes('x'))).byteLength,
            };
        })()",
    )?;
    assert_eq!(
        rotated,
        json!({ "found": null, "used": "InvalidStateError", "left": ["second"], "chain": [second], "signed": 256 })
    );
    // A new certificate for a key takes the place of the old one.
    let request = page.run("request(pair, 'renewed')")?;
    let renewed = BASE64.encode(authority.issue(&decode(&request)?, "renewed")?);
    let chain = page.run(&format!(
        "(async () => {{
            await token.installCertificate(pair.privateKey, decode('{renewed}'));
            return (await pair.privateKey.getCertificateChain()).map(encode);
        }})()"
    ))?;
    assert_eq!(chain, json!([renewed]));
    // Another origin changes nothing of it, also where it has been granted the same token.
    page.open_elsewhere()?;
    page.grant_token()?;
    assert_eq!(page.run("cryptokeys.getKeys()")?, json!([]));
    // What the user has allowed, without wanting it to be remembered, went with the page.
    page.open(&page.browser.server.url("/provisioning"))?;
    page.grant_token()?;
    let removed = page.run(
        "(async () => {
            const key = await cryptokeys.getKeyByName('second');
            await token.removeCertificate(key);
            const chain = (await key.getCertificateChain()).length;
            await token.deleteKey(key);
            const keys = (await cryptokeys.getKeys()).length;
            await cryptokeys.forget(token);
            return {
                chain, keys,
                tokens: (await cryptokeys.getTokens()).length,
                made: await failure(token.generateKey(curve, ['sign'], { name: 'third' })),
            };
        })()",
    )?;
    assert_eq!(
        removed,
        json!({ "chain": 0, "keys": 0, "tokens": 0, "made": "NotAllowedError" })
    );
    Ok(())
}

#[test]
fn r14_a_server_provisions_a_token_with_pkijs() -> Result {
    let hsm = SoftHsm::with_token(LABEL)?;
    let config = hsm.token_config();
    let page = page(hsm, &config)?;
    provision_rotate_and_remove(&page)?;
    // Nothing is left in the token, of keys, certificates and lists.
    let left = page.token.pkcs11_tool(&["--list-objects"])?;
    assert!(
        !left.contains("Object;") && !left.contains("Object:"),
        "{left}"
    );
    Ok(())
}

#[test]
fn r14_a_server_provisions_a_tpm_with_pkijs() -> Result {
    let tpm = SoftwareTpm::start()?;
    let config = tpm.token_config();
    let page = page(tpm, &config)?;
    provision_rotate_and_remove(&page)
}

/// CMS, as for signed mail: PKI.js signs with the token's key and certificate, and OpenSSL believes it.
#[test]
fn pkijs_signs_a_message_with_the_tokens_certificate() -> Result {
    let hsm = SoftHsm::with_token(LABEL)?;
    let config = hsm.token_config();
    let page = page(hsm, &config)?;
    let authority = Authority::new()?;
    page.grant_token()?;
    provision(&page, &authority, "mail", "rsa('RSASSA-PKCS1-v1_5')")?;
    let message: Value = page.run(
        "(async () => {
            const [der] = await pair.privateKey.getCertificateChain();
            const certificate = pkijs.Certificate.fromBER(der);
            const data = bytes('a message');
            const signed = new pkijs.SignedData({
                version: 1,
                encapContentInfo: new pkijs.EncapsulatedContentInfo({
                    eContentType: '1.2.840.113549.1.7.1',
                    eContent: new asn1js.OctetString({ valueHex: data.buffer }),
                }),
                signerInfos: [new pkijs.SignerInfo({
                    version: 1,
                    sid: new pkijs.IssuerAndSerialNumber({
                        issuer: certificate.issuer, serialNumber: certificate.serialNumber }),
                })],
                certificates: [certificate],
            });
            await signed.sign(pair.privateKey, 0, 'SHA-256');
            const info = new pkijs.ContentInfo({
                contentType: '1.2.840.113549.1.7.2', content: signed.toSchema(true) });
            return encode(info.toSchema().toBER());
        })()",
    )?;
    let file = authority.0.file("message.cms", &decode(&message)?)?;
    let said = authority.0.run(&[
        "cms", "-verify", "-inform", "DER", "-in", &file, "-CAfile", "ca.pem", "-purpose", "any",
    ])?;
    assert_eq!(said.trim(), "a message");
    Ok(())
}
