/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The paddings of RSA (RFC 8017), for tokens that have only the raw operation.
//!
//! The crates that implement RSA keep theirs to themselves, together with the operation.

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::key_protocol::Hash;

/// The DER encoding of DigestInfo up to the digest (RFC 8017, 9.2, note 1).
fn digest_info_prefix(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha1 => &[
            0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04,
            0x14,
        ],
        Hash::Sha256 => &[
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x01, 0x05, 0x00, 0x04, 0x20,
        ],
        Hash::Sha384 => &[
            0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x02, 0x05, 0x00, 0x04, 0x30,
        ],
        Hash::Sha512 => &[
            0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x03, 0x05, 0x00, 0x04, 0x40,
        ],
    }
}

/// DigestInfo of a digest: what a token pads that does PKCS #1 v1.5 without hashing.
pub fn digest_info(hash: Hash, digest: &[u8]) -> Vec<u8> {
    [digest_info_prefix(hash), digest].concat()
}

/// EMSA-PKCS1-v1_5 (RFC 8017, 9.2) for a modulus of `length` bytes. `None` if that is too short.
pub fn pkcs1_encode(hash: Hash, digest: &[u8], length: usize) -> Option<Vec<u8>> {
    let info = digest_info(hash, digest);
    let filling = length.checked_sub(info.len() + 3).filter(|n| *n >= 8)?;
    Some([&[0, 1], &*vec![0xff; filling], &[0], &*info].concat())
}

fn digest(hash: Hash, parts: &[&[u8]]) -> Vec<u8> {
    fn of<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
        let mut digest = D::new();
        parts.iter().for_each(|part| digest.update(part));
        digest.finalize().to_vec()
    }
    match hash {
        Hash::Sha1 => of::<Sha1>(parts),
        Hash::Sha256 => of::<Sha256>(parts),
        Hash::Sha384 => of::<Sha384>(parts),
        Hash::Sha512 => of::<Sha512>(parts),
    }
}

/// Combines `bytes` with the mask that MGF1 (RFC 8017, B.2.1) makes of a seed.
fn mask(hash: Hash, seed: &[u8], bytes: &mut [u8]) {
    for (counter, chunk) in (0_u32..).zip(bytes.chunks_mut(hash.length())) {
        let block = digest(hash, &[seed, &counter.to_be_bytes()]);
        chunk.iter_mut().zip(block).for_each(|(a, b)| *a ^= b);
    }
}

/// EMSA-PSS (RFC 8017, 9.1.1) of a digest, with that salt, for a modulus of `bits` bits. As long as the modulus. `None` if
/// that is too short.
pub fn pss_encode(hash: Hash, message_digest: &[u8], salt: &[u8], bits: usize) -> Option<Vec<u8>> {
    let used_bits = bits.checked_sub(1)?;
    let length = used_bits.div_ceil(8);
    let block_length = length.checked_sub(hash.length() + 1)?;
    let filling = block_length.checked_sub(salt.len() + 1)?;
    let salted = digest(hash, &[&[0; 8], message_digest, salt]);
    let mut block = [&*vec![0; filling], &[1], salt].concat();
    mask(hash, &salted, &mut block);
    if let Some(first) = block.first_mut() {
        *first &= 0xff >> (8 * length - used_bits);
    }
    let mut encoded = [&*block, &*salted, &[0xbc]].concat();
    // Where the modulus has one bit more than a number of bytes.
    while encoded.len() < bits.div_ceil(8) {
        encoded.insert(0, 0);
    }
    Some(encoded)
}

/// Takes EME-OAEP off (RFC 8017, 7.1.2, step 3). `None` if it is not right, whatever is wrong: that takes the same time, up to
/// the length of the message.
pub fn oaep_decode(hash: Hash, label: &[u8], encoded: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let length = hash.length();
    if encoded.len() < 2 * length + 2 {
        return None;
    }
    let (first, rest) = encoded.split_first()?;
    let (masked_seed, masked_block) = rest.split_at(length);
    let mut seed = Zeroizing::new(masked_seed.to_vec());
    mask(hash, masked_block, &mut seed);
    let mut block = Zeroizing::new(masked_block.to_vec());
    mask(hash, &seed, &mut block);
    let (label_digest, padded) = block.split_at(length);
    let expected = digest(hash, &[label]);
    // Everything is looked at, and nothing decided before the end.
    let mut wrong = *first;
    for (a, b) in label_digest.iter().zip(&expected) {
        wrong |= a ^ b;
    }
    let mut start = 0;
    let mut found = 0_u8;
    for (index, byte) in padded.iter().enumerate() {
        let is_one = u8::from(*byte == 1);
        let is_zero = u8::from(*byte == 0);
        wrong |= (1 - found) & (1 - is_one) & (1 - is_zero);
        let begins = (1 - found) & is_one;
        start |= (index + 1) * usize::from(begins);
        found |= begins;
    }
    if wrong == 0 && found == 1 {
        padded
            .get(start..)
            .map(|text| Zeroizing::new(text.to_vec()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use rsa::hazmat::rsa_decrypt;
    use rsa::rand_core::OsRng;
    use rsa::traits::PublicKeyParts;
    use rsa::{BigUint, Oaep, Pkcs1v15Sign, Pss, RsaPrivateKey, RsaPublicKey};

    use super::*;

    /// The raw operation, as a token has it.
    fn raw(key: &RsaPrivateKey, input: &[u8]) -> Vec<u8> {
        let number = BigUint::from_bytes_be(input);
        let output =
            rsa_decrypt(None::<&mut OsRng>, key, &number).expect("a number below the modulus");
        let digits = output.to_bytes_be();
        [vec![0; key.size() - digits.len()], digits].concat()
    }

    fn keys() -> impl Iterator<Item = RsaPrivateKey> {
        // With lengths that are and are not a number of bytes, or one bit more.
        [1024, 1031, 1025]
            .into_iter()
            .map(|bits| RsaPrivateKey::new(&mut OsRng, bits).expect("a key"))
    }

    const HASHES: [Hash; 4] = [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512];

    fn pss(hash: Hash, salt: usize) -> Pss {
        match hash {
            Hash::Sha1 => Pss::new_with_salt::<Sha1>(salt),
            Hash::Sha256 => Pss::new_with_salt::<Sha256>(salt),
            Hash::Sha384 => Pss::new_with_salt::<Sha384>(salt),
            Hash::Sha512 => Pss::new_with_salt::<Sha512>(salt),
        }
    }

    fn pkcs1(hash: Hash) -> Pkcs1v15Sign {
        match hash {
            Hash::Sha1 => Pkcs1v15Sign::new::<Sha1>(),
            Hash::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
            Hash::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
            Hash::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
        }
    }

    fn oaep(hash: Hash, label: &str) -> Oaep {
        match hash {
            Hash::Sha1 => Oaep::new_with_label::<Sha1, _>(label),
            Hash::Sha256 => Oaep::new_with_label::<Sha256, _>(label),
            Hash::Sha384 => Oaep::new_with_label::<Sha384, _>(label),
            Hash::Sha512 => Oaep::new_with_label::<Sha512, _>(label),
        }
    }

    #[test]
    fn others_take_what_is_padded_here() {
        for key in keys() {
            let public = RsaPublicKey::from(&key);
            for hash in HASHES {
                let message_digest = digest(hash, &[b"message"]);
                if let Some(padded) = pkcs1_encode(hash, &message_digest, key.size()) {
                    let signature = raw(&key, &padded);
                    let verified = public.verify(pkcs1(hash), &message_digest, &signature);
                    assert_eq!(verified, Ok(()), "{hash:?}");
                }
                for salt_length in [0, 20, hash.length()] {
                    let salt = vec![0x5c; salt_length];
                    let bits = key.n().bits();
                    let padded = pss_encode(hash, &message_digest, &salt, bits);
                    let Some(padded) = padded else {
                        assert!(
                            hash.length() + salt_length + 2 > bits / 8,
                            "{hash:?} {bits}"
                        );
                        continue;
                    };
                    let signature = raw(&key, &padded);
                    let verified =
                        public.verify(pss(hash, salt_length), &message_digest, &signature);
                    assert_eq!(verified, Ok(()), "{hash:?} {salt_length} {bits}");
                }
            }
        }
    }

    #[test]
    fn what_others_padded_is_taken_off() {
        for key in keys() {
            let public = RsaPublicKey::from(&key);
            for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384] {
                for (label, length) in [("", 0), ("label", 1), ("", 14)] {
                    let text = vec![0; length];
                    let ciphertext = public.encrypt(&mut OsRng, oaep(hash, label), &text);
                    let encoded = raw(&key, &ciphertext.expect("a ciphertext"));
                    let decoded = oaep_decode(hash, label.as_bytes(), &encoded);
                    assert_eq!(decoded.as_deref(), Some(&text));
                    assert_eq!(oaep_decode(hash, b"other", &encoded), None);
                    for index in 0..encoded.len() {
                        let mut changed = encoded.clone();
                        changed[index] ^= 0x10;
                        assert_eq!(oaep_decode(hash, label.as_bytes(), &changed), None);
                    }
                    assert_eq!(oaep_decode(hash, label.as_bytes(), &encoded[1..]), None);
                    assert_eq!(oaep_decode(hash, label.as_bytes(), &[]), None);
                }
            }
        }
    }

    #[test]
    fn what_is_too_long_is_not_padded() {
        assert_eq!(pkcs1_encode(Hash::Sha512, &[0; 64], 93), None);
        assert_eq!(pss_encode(Hash::Sha512, &[0; 64], &[0; 64], 1024), None);
        assert_eq!(pss_encode(Hash::Sha512, &[0; 64], &[0; 62], 0), None);
    }
}
