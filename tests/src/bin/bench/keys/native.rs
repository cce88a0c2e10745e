/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Programs that sign without the browser: each is a process that is told over its standard input what to sign.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use e2e::softhsm::{MODULE, PIN, SoftHsm};
use e2e::{npm, swtpm::SoftwareTpm};
use serde_json::json;
use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{
    Auth, Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, KeyDerivationFunctionScheme,
    Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyRsa, PublicRsaParametersBuilder,
    RsaExponent, RsaScheme, SignatureScheme, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::{Key, LIMIT};
use crate::Result;

/// The argument that makes this program one that signs natively. `pkcs11` or a TPM's name follows.
pub const NATIVE: &str = "native-keys";
const PKCS11: &str = "pkcs11";
/// What is signed.
const MESSAGE: [u8; 32] = [0; 32];

/// A program that runs.
pub struct Program {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<io::Result<String>>,
}

impl Program {
    /// One that calls SoftHSM2 through `cryptoki`.
    pub fn pkcs11(hsm: &SoftHsm) -> Result<Program> {
        let this = env::current_exe()?;
        let mut command = hsm.tool(&this.to_string_lossy());
        Program::start(command.args([NATIVE, PKCS11]))
    }

    /// One that calls a TPM through `tss-esapi`.
    pub fn tpm(tpm: &SoftwareTpm) -> Result<Program> {
        let mut command = Command::new(env::current_exe()?);
        Program::start(command.args([NATIVE, &tpm.tcti()]))
    }

    /// One that calls SoftHSM2 through node-webcrypto-p11.
    pub fn node(hsm: &SoftHsm) -> Result<Program> {
        let mut command = hsm.tool("node");
        command.current_dir(npm::with_addon("pkcs11js", "pkcs11.node")?);
        Program::start(command.args(["-e", include_str!("node.js"), "--", MODULE, PIN]))
    }

    fn start(command: &mut Command) -> Result<Program> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let orders = process.stdin.take().ok_or("no standard input")?;
        let output = process.stdout.take().ok_or("no standard output")?;
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                // Nobody may wait any more.
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let program = Program {
            process,
            orders,
            answers,
        };
        program.answer(LIMIT)?;
        Ok(program)
    }

    fn answer(&self, limit: Duration) -> Result<Vec<f64>> {
        let line = self.answers.recv_timeout(limit)??;
        serde_json::from_str(&line).map_err(|_| line.into())
    }

    /// The moments of the start and of so many signatures, in µs. `threads` of the program sign at the same time.
    pub fn sign(&mut self, key: Key, threads: usize, count: usize) -> Result<Vec<f64>> {
        writeln!(self.orders, "{} {count} {threads}", key.name)?;
        let moments = self.answer(LIMIT)?;
        if moments.len() != count + 1 {
            return Err("the program measured something else".into());
        }
        Ok(moments)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program as [`NATIVE`].
pub fn run(what: &str) -> Result<()> {
    let mut signer = match what {
        PKCS11 => Signer::Module(Module::open()?),
        tcti => Signer::Tpm(Tpm::open(tcti)?),
    };
    println!("[]");
    for line in io::stdin().lines() {
        let line = line?;
        let [name, count, threads] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err("no such order".into());
        };
        let (count, threads) = (count.parse()?, threads.parse()?);
        let moments = match &mut signer {
            Signer::Module(module) => module.sign(name, count, threads)?,
            Signer::Tpm(tpm) => tpm.sign(name, count)?,
        };
        println!("{}", json!(moments));
    }
    Ok(())
}

enum Signer {
    Module(Module),
    Tpm(Tpm),
}

/// SoftHSM2.
struct Module {
    context: Pkcs11,
    /// Stays open, because it is what is logged in.
    session: Session,
}

impl Module {
    fn open() -> Result<Module> {
        let context = Pkcs11::new(MODULE)?;
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let slots = context.get_slots_with_initialized_token()?;
        let session = context.open_ro_session(*slots.first().ok_or("no token")?)?;
        session.login(UserType::User, Some(&AuthPin::new(PIN.into())))?;
        Ok(Module { context, session })
    }

    fn sign(&self, name: &str, count: usize, threads: usize) -> Result<Vec<f64>> {
        let find = |class| -> Result<ObjectHandle> {
            let label = Attribute::Label(name.as_bytes().to_vec());
            let found = self
                .session
                .find_objects(&[Attribute::Class(class), label])?;
            Ok(*found.first().ok_or("no such key")?)
        };
        let private = find(ObjectClass::PRIVATE_KEY)?;
        let public = find(ObjectClass::PUBLIC_KEY)?;
        let slot = self.session.get_session_info()?.slot_id();
        let sessions: Vec<Session> = (0..threads)
            .map(|_| self.context.open_ro_session(slot))
            .collect::<std::result::Result<_, _>>()?;
        let started = Instant::now();
        let begun = AtomicUsize::new(0);
        let sign = |session: Session| {
            let mut moments = Vec::with_capacity(count);
            let mut last = Vec::new();
            let mechanism = mechanism(name);
            while begun.fetch_add(1, Ordering::Relaxed) < count {
                last = session.sign(&mechanism, private, &MESSAGE)?;
                moments.push(started.elapsed().as_secs_f64() * 1e6);
            }
            Ok::<_, cryptoki::error::Error>((moments, last))
        };
        let signed: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .into_iter()
                .map(|session| scope.spawn(|| sign(session)))
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut moments = vec![0.0];
        for signed in signed {
            let (signed, last) = signed.map_err(|_| "a thread has panicked")??;
            // Another one may have made all.
            if !signed.is_empty() {
                self.session
                    .verify(&mechanism(name), public, &MESSAGE, &last)?;
            }
            moments.extend(signed);
        }
        moments.sort_unstable_by(f64::total_cmp);
        Ok(moments)
    }
}

fn mechanism(name: &str) -> Mechanism<'static> {
    match name {
        "P-256" => Mechanism::Ecdsa,
        _ => Mechanism::Sha256RsaPkcs,
    }
}

/// A TPM: with its key loaded, and in a session that goes on and hides what is sent, as the browser's.
struct Tpm {
    context: Context,
    parent: KeyHandle,
    loaded: Option<(String, KeyHandle)>,
}

impl Tpm {
    fn open(tcti: &str) -> Result<Tpm> {
        let mut context = Context::new(tcti.parse()?)?;
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_sensitive_data_origin(true)
            .with_user_with_auth(true)
            .with_no_da(true)
            .with_decrypt(true)
            .with_restricted(true)
            .build()?;
        let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
            SymmetricDefinitionObject::AES_128_CFB,
            EccCurve::NistP256,
        )
        .build()?;
        let public = PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(EccPoint::default())
            .build()?;
        let parent = context
            .execute_with_nullauth_session(|context| {
                context.create_primary(Hierarchy::Owner, public, None, None, None, None)
            })?
            .key_handle;
        let session = context.start_auth_session(
            Some(parent),
            None,
            None,
            SessionType::Hmac,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .with_decrypt(true)
            .with_encrypt(true)
            .build();
        context.tr_sess_set_attributes(session.ok_or("no session")?, attributes, mask)?;
        context.set_sessions((session, None, None));
        Ok(Tpm {
            context,
            parent,
            loaded: None,
        })
    }

    /// The key of this name; it is made if it is not the one that was used last.
    fn key(&mut self, name: &str) -> Result<KeyHandle> {
        match self.loaded.take() {
            Some((loaded, handle)) if loaded == name => {
                self.loaded = Some((loaded, handle));
                return Ok(handle);
            }
            Some((_, handle)) => self.context.flush_context(handle.into())?,
            None => {}
        }
        let auth = Auth::try_from(vec![0xa5; 32])?;
        let context = &mut self.context;
        let template = template(name)?;
        let made = context.create(self.parent, template, Some(auth.clone()), None, None, None)?;
        let handle = context.load(self.parent, made.out_private, made.out_public)?;
        context.tr_set_auth(handle.into(), auth)?;
        self.loaded = Some((name.to_owned(), handle));
        Ok(handle)
    }

    fn sign(&mut self, name: &str, count: usize) -> Result<Vec<f64>> {
        let key = self.key(name)?;
        let digest = Digest::try_from(&MESSAGE[..])?;
        let hash_scheme = HashScheme::new(HashingAlgorithm::Sha256);
        let scheme = match name {
            "P-256" => SignatureScheme::EcDsa { hash_scheme },
            _ => SignatureScheme::RsaSsa { hash_scheme },
        };
        let started = Instant::now();
        let mut moments = vec![0.0];
        let mut signature = None;
        for _ in 0..count {
            let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
                tag: TPM2_ST_HASHCHECK,
                hierarchy: TPM2_RH_NULL,
                digest: Default::default(),
            })?;
            signature = Some(self.context.sign(key, digest.clone(), scheme, ticket)?);
            moments.push(started.elapsed().as_secs_f64() * 1e6);
        }
        if let Some(signature) = signature {
            // Nothing secret is in it, and it takes no authorization.
            self.context.execute_without_session(|context| {
                context.verify_signature(key, digest, signature)
            })?;
        }
        Ok(moments)
    }
}

fn template(name: &str) -> Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let builder = PublicBuilder::new()
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes);
    let builder = if name == "P-256" {
        let hash = HashScheme::new(HashingAlgorithm::Sha256);
        let parameters = PublicEccParametersBuilder::new()
            .with_symmetric(SymmetricDefinitionObject::Null)
            .with_ecc_scheme(EccScheme::EcDsa(hash))
            .with_curve(EccCurve::NistP256)
            .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
            .with_is_signing_key(true)
            .build()?;
        builder
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(EccPoint::default())
    } else {
        let parameters = PublicRsaParametersBuilder::new()
            .with_scheme(RsaScheme::Null)
            .with_key_bits(RsaKeyBits::Rsa2048)
            .with_exponent(RsaExponent::default())
            .with_is_signing_key(true)
            .build()?;
        builder
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_rsa_parameters(parameters)
            .with_rsa_unique_identifier(PublicKeyRsa::default())
    };
    Ok(builder.build()?)
}
