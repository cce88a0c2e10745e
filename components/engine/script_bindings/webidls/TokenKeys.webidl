/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// skip-unless CARGO_FEATURE_WEBCRYPTO

// WebCrypto Key Discovery, and its extension to keys that live in tokens
// https://w3c.github.io/webcrypto-key-discovery/

// https://w3c.github.io/webcrypto-key-discovery/#window-extension
[SecureContext]
partial interface Window {
  [SameObject, Pref="dom_token_keys_enabled"] readonly attribute CryptoKeys cryptokeys;
};

// https://w3c.github.io/webcrypto-key-discovery/#workerglobalscope-extension
[SecureContext]
partial interface WorkerGlobalScope {
  [SameObject, Pref="dom_token_keys_enabled"] readonly attribute CryptoKeys cryptokeys;
};

// https://w3c.github.io/webcrypto-key-discovery/#cryptokeys-interface
[SecureContext, Exposed=(Window,Worker), Pref="dom_token_keys_enabled"]
interface CryptoKeys : EventTarget {
  Promise<NamedCryptoKey?> getKeyByName(DOMString name);
  Promise<sequence<TokenCryptoKey>> getKeys(optional KeyQuery query = {});
  [Exposed=Window] Promise<TokenCryptoKey> requestKey(optional KeyQuery query = {});
  Promise<sequence<CryptoToken>> getTokens(optional TokenQuery query = {});
  [Exposed=Window] Promise<CryptoToken> requestToken(optional TokenQuery query = {});
  Promise<undefined> forget((TokenCryptoKey or CryptoToken) granted);
  attribute EventHandler ontokeninserted;
  attribute EventHandler ontokenremoved;
};

// https://w3c.github.io/webcrypto-key-discovery/#namedcryptokey-interface
// These two are serializable, by the steps of CryptoKey.
[SecureContext, Exposed=(Window,Worker), Pref="dom_token_keys_enabled"]
interface NamedCryptoKey : CryptoKey {
  readonly attribute DOMString name;
  readonly attribute DOMString? id;
};

enum KeyProtection { "software", "isolated", "hardware" };
enum KeyUserVerification { "none", "session", "each-use" };
enum KeyProvenance { "unknown", "imported", "generated" };

[SecureContext, Exposed=(Window,Worker), Pref="dom_token_keys_enabled"]
interface TokenCryptoKey : NamedCryptoKey {
  [SameObject] readonly attribute CryptoToken token;
  readonly attribute KeyProtection protection;
  readonly attribute KeyUserVerification userVerification;
  readonly attribute KeyProvenance provenance;
  readonly attribute boolean wrappable;
  readonly attribute /* FrozenArray<USVString> */ any origins;
  Promise<CryptoKey> getPublicKey(optional sequence<KeyUsage> usages = []);
  Promise<sequence<ArrayBuffer>> getCertificateChain();
  Promise<TokenCryptoKey> withAlgorithm(AlgorithmIdentifier algorithm, sequence<KeyUsage> usages);
};

[SecureContext, Exposed=(Window,Worker), Pref="dom_token_keys_enabled"]
interface CryptoToken {
  readonly attribute DOMString id;
  readonly attribute DOMString label;
  readonly attribute KeyProtection protection;
  readonly attribute boolean present;
  readonly attribute boolean provisionable;
  [SameObject] readonly attribute SubtleCrypto subtle;
  boolean supports(DOMString operation, AlgorithmIdentifier algorithm);
  Promise<(TokenCryptoKey or CryptoKeyPair)> generateKey(AlgorithmIdentifier algorithm,
                                                         sequence<KeyUsage> usages,
                                                         TokenKeyOptions options);
  Promise<TokenCryptoKey> unwrapKey(BufferSource wrappedKey,
                                    TokenCryptoKey unwrappingKey,
                                    AlgorithmIdentifier unwrapAlgorithm,
                                    AlgorithmIdentifier unwrappedKeyAlgorithm,
                                    sequence<KeyUsage> usages,
                                    TokenKeyOptions options);
  Promise<undefined> deleteKey(TokenCryptoKey key);
  Promise<undefined> installCertificate(TokenCryptoKey key, BufferSource certificate);
  Promise<undefined> removeCertificate(TokenCryptoKey key);
  Promise</* TokenAttestation */ any> attestKey(TokenCryptoKey key, BufferSource challenge);
};

[SecureContext, Exposed=(Window,Worker), Pref="dom_token_keys_enabled"]
interface CryptoTokenEvent : Event {
  constructor(DOMString type, CryptoTokenEventInit eventInitDict);
  readonly attribute CryptoToken token;
};

dictionary CryptoTokenEventInit : EventInit {
  required CryptoToken token;
};

dictionary TokenQuery {
  DOMString label;
  DOMString manufacturer;
  DOMString model;
  DOMString reader;
  KeyProtection minimumProtection = "software";
  boolean provisionable;
};

// RFC 5280, 4.2.1.3
enum CertificateKeyUsage {
  "digitalSignature",
  "contentCommitment",
  "keyEncipherment",
  "dataEncipherment",
  "keyAgreement",
  "keyCertSign",
  "cRLSign",
  "encipherOnly",
  "decipherOnly"
};

dictionary KeyQuery {
  DOMString name;
  BufferSource keyIdentifier;
  BufferSource publicKey;
  AlgorithmIdentifier algorithm;
  KeyType type;
  sequence<KeyUsage> usages;
  (CryptoToken or TokenQuery) token;
  KeyProtection minimumProtection = "software";
  KeyUserVerification userVerification;
  KeyProvenance provenance;
  boolean attestable;
  sequence<BufferSource> certificateIssuers;
  sequence<CertificateKeyUsage> certificateKeyUsages;
  sequence<DOMString> extendedKeyUsages;
  boolean validCertificate;
};

dictionary TokenKeyOptions {
  required DOMString name;
  sequence<USVString> origins;
  KeyUserVerification userVerification = "session";
  boolean persistent = true;
  boolean wrappable = false;
};

// Made by hand in cryptotoken.rs: the bindings have no dictionaries with sequences of ArrayBuffers.
// dictionary TokenAttestation {
//   required DOMString format;
//   required ArrayBuffer statement;
//   required sequence<ArrayBuffer> chain;
// };
