/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Where secrets are: what goes in and out of a PKCS#11 module, as OpenSC's `pkcs11-spy` writes it down, and what is in the
//! memory of the browser's processes afterwards. The latter takes root.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::process::Process;
use e2e::softhsm::SoftHsm;
use e2e::token_page::{LABEL, OpenSsl, Page, Result, decode};
use memchr::memmem;
use serde_json::json;

const SECRET: &[u8] = b"the server's API secret, 32 byte";
const PIN: &str = "7351940268846157";

fn spied() -> Result<Page<SoftHsm>> {
    let hsm = SoftHsm::with_token(LABEL)?;
    let config = hsm.token_config_spied()?;
    let page = Page::with_softhsm(hsm, &config)?;
    page.grant_token()?;
    Ok(page)
}

/// What the spy has written.
struct Spied {
    text: String,
    /// Whatever went in or out as bytes.
    bytes: Vec<u8>,
}

impl Spied {
    fn read(page: &Page<SoftHsm>) -> Result<Self> {
        let text = String::from_utf8_lossy(&fs::read(page.token.spy_log())?).into_owned();
        let bytes = text.lines().filter_map(dumped).flatten().collect();
        Ok(Self { text, bytes })
    }

    /// How often a function did what it is for.
    fn calls(&self, function: &str) -> usize {
        let mut name = "";
        let mut count = 0;
        for line in self.text.lines() {
            if let Some((number, called)) = line.split_once(": ")
                && number.parse::<u32>().is_ok()
            {
                name = called;
            } else if name == function && line.starts_with("Returned:") && line.contains("CKR_OK") {
                count += 1;
            }
        }
        count
    }

    fn has(&self, bytes: &[u8]) -> bool {
        memmem::find(&self.bytes, bytes).is_some()
    }
}

/// The bytes in a line such as `    00000000  41 42 43 44  ABCD`.
fn dumped(line: &str) -> Option<Vec<u8>> {
    let mut words = line.split_whitespace();
    let offset = words.next()?;
    if offset.len() != 8 || u32::from_str_radix(offset, 16).is_err() {
        return None;
    }
    let bytes = words.map_while(|word| {
        (word.len() == 2)
            .then(|| u8::from_str_radix(word, 16).ok())
            .flatten()
    });
    Some(bytes.take(16).collect())
}

#[test]
fn r1_r2_the_token_makes_keys_and_uses_them() -> Result {
    let page = spied()?;
    page.run(
        "(async () => {
            const pair = await token.generateKey(curve, ['sign'], { name: 'signature' });
            for (let count = 0; count < 3; count++)
                await subtle.sign(ecdsa, pair.privateKey, bytes('a message'));
            const post = await token.generateKey(rsa('RSA-OAEP', 'SHA-1'), ['encrypt', 'decrypt'], { name: 'post' });
            const text = await subtle.encrypt('RSA-OAEP', post.publicKey, bytes('a message'));
            await subtle.decrypt('RSA-OAEP', post.privateKey, text);
            const key = await token.generateKey({ name: 'AES-CBC', length: 256 }, ['encrypt', 'decrypt'], { name: 'data' });
            const iv = new Uint8Array(16);
            await subtle.decrypt({ name: 'AES-CBC', iv }, key, await subtle.encrypt({ name: 'AES-CBC', iv }, key, iv));
        })()",
    )?;
    let spied = Spied::read(&page)?;
    let calls = [
        ("C_GenerateKeyPair", 2),
        ("C_GenerateKey", 1),
        ("C_SignInit", 3),
        ("C_DecryptInit", 2),
        ("C_EncryptInit", 1),
        // Public keys are the engine's.
        ("C_VerifyInit", 0),
    ];
    for (function, count) in calls {
        assert_eq!(spied.calls(function), count, "{function}");
    }
    Ok(())
}

/// No call has brought a private or secret key into the token, or the value of one out. Secret keys here have 32 bytes, and
/// nothing else that is kept has.
fn assert_no_values(spied: &Spied) {
    let mut function = "";
    let mut values = 0;
    for line in spied.text.lines().map(str::trim) {
        if let Some((number, name)) = line.split_once(": ")
            && number.parse::<u32>().is_ok()
        {
            function = name;
        }
        values += usize::from(line.starts_with("CKA_VALUE "));
        let is_secret = (line.starts_with("CKA_VALUE ") && line.ends_with("/ 32"))
            || line.starts_with("CKA_PRIVATE_EXPONENT ")
            || line.starts_with("CKA_PRIME_1 ");
        assert!(!is_secret, "{function}: {line}");
        let is_key = line.contains("CKO_PRIVATE_KEY") || line.contains("CKO_SECRET_KEY");
        assert!(!(function == "C_CreateObject" && is_key), "{line}");
    }
    // The lists of origins are seen.
    assert!(values > 0, "{}", spied.text);
}

/// The position paper's third case. Nobody outside knows the data key, nor what wraps it.
#[test]
fn r3_a_data_key_is_never_outside_the_token_in_the_clear() -> Result {
    let page = spied()?;
    let outcome = page.run(
        "(async () => {
            const wrapping = await token.subtle.generateKey({ name: 'AES-KW', length: 256 }, false, ['wrapKey', 'unwrapKey']);
            const aes = { name: 'AES-CBC', length: 256 };
            const data = await token.generateKey(aes, ['encrypt', 'decrypt'], { name: 'data', wrappable: true });
            const iv = new Uint8Array(16);
            const text = await subtle.encrypt({ name: 'AES-CBC', iv }, data, bytes('kept'));
            const wrapped = await subtle.wrapKey('raw', data, wrapping, 'AES-KW');
            // A key that was somewhere else before wraps none of the token's.
            const transport = await token.generateKey(rsa('RSA-OAEP', 'SHA-1'), ['unwrapKey'], { name: 'transport' });
            const known = await subtle.importKey('raw', new Uint8Array(32).fill(0x5a), 'AES-KW', true, ['wrapKey']);
            const open = await subtle.importKey('spki', await subtle.exportKey('spki', transport.publicKey),
                { name: 'RSA-OAEP', hash: 'SHA-1' }, false, ['wrapKey']);
            const brought = await token.subtle.unwrapKey('raw', await subtle.wrapKey('raw', known, open, 'RSA-OAEP'),
                transport.privateKey, 'RSA-OAEP', { name: 'AES-KW', length: 256 }, false, ['wrapKey']);
            const refused = await failure(subtle.wrapKey('raw', data, brought, 'AES-KW'));
            await token.deleteKey(data);
            const back = await token.subtle.unwrapKey('raw', wrapped, wrapping, 'AES-KW', aes, false, ['decrypt']);
            const again = await subtle.decrypt({ name: 'AES-CBC', iv }, back, text);
            return { wrapped: encode(wrapped), again: encode(again), refused };
        })()",
    )?;
    assert_eq!(decode(&outcome["again"])?, b"kept");
    assert_eq!(outcome["refused"], "InvalidAccessError");
    let wrapped = decode(&outcome["wrapped"])?;
    assert_eq!(wrapped.len(), 40);
    let spied = Spied::read(&page)?;
    // Both keys are made in the token.
    assert_eq!(spied.calls("C_GenerateKey"), 2);
    // It may be asked for the length first.
    assert!((1..=2).contains(&spied.calls("C_WrapKey")));
    assert_eq!(spied.calls("C_UnwrapKey"), 2);
    assert!(spied.has(&wrapped), "the wrapped key went out and in");
    assert_no_values(&spied);
    Ok(())
}

/// The paper's second case.
#[test]
fn r3_a_servers_secret_is_never_outside_the_token_in_the_clear() -> Result {
    let page = spied()?;
    let spki = page.run(
        "(async () => {
            self.transport = await token.generateKey(rsa('RSA-OAEP', 'SHA-1'), ['unwrapKey'], { name: 'transport' });
            return encode(await subtle.exportKey('spki', transport.publicKey));
        })()",
    )?;
    let openssl = OpenSsl::new()?;
    let key = openssl.file("key.der", &decode(&spki)?)?;
    let secret = openssl.file("secret", SECRET)?;
    openssl.run(&[
        "pkeyutl",
        "-encrypt",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        &key,
        "-in",
        &secret,
        "-out",
        "wrapped",
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        "rsa_oaep_md:sha1",
    ])?;
    let wrapped = openssl.read("wrapped")?;
    let encoded = BASE64.encode(&wrapped);
    let mac = page.run(&format!(
        "(async () => {{
            const key = await token.subtle.unwrapKey('raw', decode('{encoded}'), transport.privateKey, 'RSA-OAEP',
                {{ name: 'HMAC', hash: 'SHA-256' }}, false, ['sign']);
            return encode(await subtle.sign('HMAC', key, bytes('a request')));
        }})()"
    ))?;
    assert_eq!(decode(&mac)?.len(), 32);
    let spied = Spied::read(&page)?;
    assert_eq!(spied.calls("C_UnwrapKey"), 1);
    assert_eq!(spied.calls("C_SignInit"), 1);
    assert!(spied.calls("C_DecryptInit") == 0);
    assert!(spied.has(&wrapped), "the wrapped secret went in");
    assert!(spied.has(b"a request"), "the message went in");
    assert!(!spied.has(&SECRET[..16]) && !spied.has(&SECRET[16..]));
    assert_no_values(&spied);
    for process in page.browser.shell.processes() {
        if !is_module(&process) {
            let found = find(&process, &[&SECRET[..16], &SECRET[16..]]);
            assert!(!found.contains(&true), "{process:?}");
        }
    }
    Ok(())
}

/// The process that the module is in.
fn is_module(process: &Process) -> bool {
    process
        .arguments
        .get(1)
        .is_some_and(|kind| kind == "module-worker")
}

/// Which of these are in a process's memory, as far as it can be written.
fn find(process: &Process, wanted: &[&[u8]]) -> Vec<bool> {
    let folder = format!("/proc/{}", process.pid);
    let mut found = vec![false; wanted.len()];
    // It may have ended.
    let (Ok(maps), Ok(memory)) = (
        fs::read_to_string(format!("{folder}/maps")),
        File::open(format!("{folder}/mem")),
    ) else {
        return found;
    };
    let finders: Vec<_> = wanted.iter().map(memmem::Finder::new).collect();
    let longest = wanted.iter().map(|it| it.len()).max().unwrap_or_default();
    let mut part = vec![0; 1 << 20];
    for line in maps.lines() {
        let mut columns = line.split_whitespace();
        let (Some(range), Some(mode)) = (columns.next(), columns.next()) else {
            continue;
        };
        let number = |text| u64::from_str_radix(text, 16).ok();
        let Some((mut at, end)) = range
            .split_once('-')
            .and_then(|(from, to)| Some((number(from)?, number(to)?)))
            .filter(|_| mode.starts_with("rw"))
        else {
            continue;
        };
        while at < end {
            let length = (end - at).min(part.len() as u64);
            let length = usize::try_from(length).unwrap_or_default();
            // Parts of stacks that have not been used cannot be read.
            if memory.read_exact_at(&mut part[..length], at).is_err() {
                break;
            }
            for (found, finder) in found.iter_mut().zip(&finders) {
                *found |= finder.find(&part[..length]).is_some();
            }
            let is_last = at + length as u64 == end;
            // Whatever lies across the boundary is found with the next part.
            at += if is_last { length } else { length - longest } as u64;
        }
    }
    found
}

/// A key that the test knows gets into the token by another program, is given to a page by the user, and signs. Whoever types
/// the PIN does so for automation, which keeps it for the next prompt, in the main process; nobody else has it.
#[test]
fn r13_r15_no_process_has_the_pin_or_a_key_but_the_modules() -> Result {
    let hsm = SoftHsm::with_pin(LABEL, PIN)?;
    let openssl = OpenSsl::new()?;
    openssl.run(&[
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        "key.pem",
    ])?;
    openssl.run(&[
        "pkcs8", "-topk8", "-nocrypt", "-in", "key.pem", "-out", "key.p8",
    ])?;
    let text = openssl.run(&["pkey", "-in", "key.pem", "-noout", "-text"])?;
    let number = |name: &str| -> Result<Vec<u8>> {
        let (_, rest) = text.split_once(name).ok_or(format!("no {name}"))?;
        let digits: String = rest
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with(' '))
            .flat_map(|line| line.chars().filter(char::is_ascii_hexdigit))
            .collect();
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .filter_map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok())
            .collect();
        Ok(bytes.into_iter().skip_while(|byte| *byte == 0).collect())
    };
    let path = openssl.file("import.pem", &openssl.read("key.p8")?)?;
    let mut import = hsm.tool("softhsm2-util");
    import.args(["--import", &path, "--token", LABEL, "--label", "imported"]);
    import.args(["--id", "a1b2", "--pin", PIN]);
    e2e::softhsm::finish(&mut import)?;
    let config = hsm.token_config();
    let page = Page::with_softhsm(hsm, &config)?;
    page.grant_token()?;
    // Logs in, so that the key can be seen.
    page.run("token.generateKey(curve, ['sign'], { name: 'own' }).then(() => null)")?;
    let signed = page.on_click(
        "cryptokeys.requestKey({ name: 'imported' }).then(async key => {
            for (let count = 0; count < 10; count++)
                self.signature = await subtle.sign('RSASSA-PKCS1-v1_5', key, bytes('a message'));
            self.spki = encode(await subtle.exportKey('spki', await key.getPublicKey()));
            return { provenance: key.provenance, signature: encode(signature), spki };
        })",
    )?;
    openssl.verify(
        &decode(&signed["spki"])?,
        &decode(&signed["signature"])?,
        b"a message",
        &["-sha256"],
    )?;
    assert_eq!(signed["provenance"], json!("imported"));

    let modulus = number("modulus:")?;
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    for name in [
        "privateExponent:",
        "prime1:",
        "prime2:",
        "exponent1:",
        "exponent2:",
        "coefficient:",
    ] {
        let number = number(name)?;
        // As in files, and as OpenSSL computes with it. Whoever frees memory may write over its beginning.
        let middle = &number[16..48];
        secrets.push(middle.to_vec());
        secrets.push(middle.iter().rev().copied().collect());
    }
    let wanted: Vec<&[u8]> = [PIN.as_bytes(), &modulus[16..48]]
        .into_iter()
        .chain(secrets.iter().map(Vec::as_slice))
        .collect();
    let main = page.browser.shell.pid();
    let mut seen_modulus = Vec::new();
    let mut pins = Vec::new();
    let processes = page.browser.shell.processes();
    for process in &processes {
        let found = find(process, &wanted);
        if found[0] {
            pins.push(process.pid);
        }
        if found[1] {
            seen_modulus.push(process.pid);
        }
        if !is_module(process) {
            assert!(!found[2..].contains(&true), "{process:?}: {found:?}");
        }
    }
    assert!(processes.iter().any(is_module), "{processes:?}");
    // What is there is found: the public half is in the page's process, and in the broker.
    assert!(seen_modulus.len() >= 2, "{seen_modulus:?}");
    assert_eq!(pins, [main], "{processes:?}");
    Ok(())
}
