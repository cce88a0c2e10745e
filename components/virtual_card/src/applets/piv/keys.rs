/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The private keys of the PIV application, and what they do.

use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::elliptic_curve::{Generate as _, ecdh};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use rsa::hazmat::rsa_decrypt_and_check;
use rsa::signature::hazmat::PrehashSigner;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, RsaPrivateKey};
use secure_element::piv::Algorithm;
use secure_element::piv::key::PublicKey;

/// The private half of a key.
#[derive(Debug)]
pub enum PrivateKey {
    /// RSA, of 2048 or 3072 bits.
    Rsa(Box<RsaPrivateKey>),
    /// On NIST P-256.
    P256(p256::SecretKey),
    /// On NIST P-384.
    P384(p384::SecretKey),
}

/// The key cannot do it with this input, or the system has no randomness.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failed;

/// What the operating system gives is enough for a generator of the card's own.
pub(super) fn generator() -> Result<StdRng, Failed> {
    StdRng::try_from_rng(&mut SysRng).map_err(|_| Failed)
}

impl PrivateKey {
    /// Makes one. `None` if the card has no such keys.
    pub fn generate(algorithm: Algorithm) -> Option<Result<Self, Failed>> {
        let bits = match algorithm {
            Algorithm::Rsa2048 => Some(2048),
            Algorithm::Rsa3072 => Some(3072),
            Algorithm::P256 | Algorithm::P384 => None,
            Algorithm::Rsa1024 | Algorithm::Rsa4096 => return None,
        };
        Some(generator().and_then(|mut random| {
            Ok(match (bits, algorithm) {
                (Some(bits), _) => {
                    let key = RsaPrivateKey::new(&mut random, bits).map_err(|_| Failed)?;
                    Self::Rsa(Box::new(key))
                }
                (None, Algorithm::P384) => {
                    Self::P384(p384::SecretKey::generate_from_rng(&mut random))
                }
                (None, _) => Self::P256(p256::SecretKey::generate_from_rng(&mut random)),
            })
        }))
    }

    /// Its algorithm; `None` for RSA of another length, which only an import can bring.
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.public().algorithm()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Rsa(key) => PublicKey::Rsa {
                modulus: key.n_bytes().to_vec(),
                exponent: key.e_bytes().to_vec(),
            },
            Self::P256(key) => PublicKey::Ec {
                algorithm: Algorithm::P256,
                point: key.public_key().to_sec1_point(false).as_bytes().to_vec(),
            },
            Self::P384(key) => PublicKey::Ec {
                algorithm: Algorithm::P384,
                point: key.public_key().to_sec1_point(false).as_bytes().to_vec(),
            },
        }
    }

    /// Raw RSA of a block as long as the modulus, or an ECDSA signature, in DER, of a digest that is as long as a
    /// coordinate.
    pub fn operate(&self, input: &[u8]) -> Result<Vec<u8>, Failed> {
        match self {
            Self::Rsa(key) => {
                let length = key.size();
                if input.len() != length {
                    return Err(Failed);
                }
                let precision = u32::try_from(8 * length).map_err(|_| Failed)?;
                let block = BoxedUint::from_be_slice(input, precision).map_err(|_| Failed)?;
                let mut random = generator()?;
                let output = rsa_decrypt_and_check(&**key, Some(&mut random), &block)
                    .map_err(|_| Failed)?
                    .to_be_bytes_trimmed_vartime();
                let zeros = length.checked_sub(output.len()).ok_or(Failed)?;
                Ok([&vec![0; zeros], &*output].concat())
            }
            Self::P256(key) => {
                let key = p256::ecdsa::SigningKey::from(key);
                let signature: p256::ecdsa::DerSignature =
                    key.sign_prehash(input).map_err(|_| Failed)?;
                Ok(signature.as_bytes().to_vec())
            }
            Self::P384(key) => {
                let key = p384::ecdsa::SigningKey::from(key);
                let signature: p384::ecdsa::DerSignature =
                    key.sign_prehash(input).map_err(|_| Failed)?;
                Ok(signature.as_bytes().to_vec())
            }
        }
    }

    /// The coordinate of the point that this key has in common with the owner of that one.
    pub fn agree(&self, point: &[u8]) -> Result<Vec<u8>, Failed> {
        match self {
            Self::Rsa(_) => Err(Failed),
            Self::P256(key) => {
                let point = p256::PublicKey::from_sec1_bytes(point).map_err(|_| Failed)?;
                let secret = ecdh::diffie_hellman(key.to_nonzero_scalar(), point.as_affine());
                Ok(secret.raw_secret_bytes().to_vec())
            }
            Self::P384(key) => {
                let point = p384::PublicKey::from_sec1_bytes(point).map_err(|_| Failed)?;
                let secret = ecdh::diffie_hellman(key.to_nonzero_scalar(), point.as_affine());
                Ok(secret.raw_secret_bytes().to_vec())
            }
        }
    }
}
