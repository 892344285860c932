'use strict'
// pickgate's SM profile for a terminal, over sm-crypto. The recipe is docs/sm-profile.md; the steps here have its numbers.

const crypto = require('node:crypto')
const { sm2, sm3, sm4 } = require('sm-crypto')

const MAGIC = Buffer.from([0x00, 0x53, 0x4d, 0x01])
const NONCE_BYTES = 16
const TAG_BYTES = 32
const C1C3C2 = 1

const hmac = (key, ...parts) =>
  Buffer.from(sm3([...Buffer.concat(parts)], { mode: 'hmac', key: key.toString('hex') }), 'hex')

// 2. HKDF (RFC 5869) with HMAC-SM3, 48 bytes: 16 to encrypt, 32 to authenticate.
function keysOf(secret, salt, label, path) {
  const info = Buffer.from(label + path, 'ascii')
  const prk = hmac(salt, secret)
  const first = hmac(prk, info, Buffer.from([1]))
  const second = hmac(prk, first, info, Buffer.from([2]))
  const made = Buffer.concat([first, second])
  return { enc: made.subarray(0, 16), mac: made.subarray(16, 48) }
}

// 3. SM4 in counter mode (NIST SP 800-38A, 6.5), from a counter block of zeros; its own inverse. sm-crypto has no CTR, so the
// counter blocks are encrypted and added.
function ctr(key, data) {
  const blocks = Math.ceil(data.length / 16)
  if (blocks === 0) return Buffer.alloc(0)
  const counters = Buffer.alloc(16 * blocks)
  for (let n = 0; n < blocks; n++) counters.writeUInt32BE(n, 16 * n + 12)
  const stream = sm4.encrypt([...counters], key.toString('hex'), { padding: 'none', output: 'array' })
  return Buffer.from(data.map((byte, at) => byte ^ stream[at]))
}

// 1. The secret, from what the server gave: sealedSecret, C1 | C3 | C2 in hex.
function secretOf(sealedSecret, privateKey) {
  const cipher = sealedSecret.replace(/^04/, '')
  const secret = Buffer.from(sm2.doDecrypt(cipher, privateKey, C1C3C2, { output: 'array' }))
  if (secret.length !== 32) throw new Error('the secret does not open: it is for another key, or was changed')
  return secret
}

// 4. The envelope of a request, and what opens its answer.
function sealRequest(terminal, path, body, now = Date.now(), nonce = crypto.randomBytes(NONCE_BYTES)) {
  const head = Buffer.alloc(28)
  MAGIC.copy(head)
  head.writeUInt32BE(terminal.mallId, 4)
  head.writeUInt32BE(terminal.storeId, 8)
  head.writeUInt32BE(terminal.terminalId, 12)
  head.writeUInt32BE(terminal.number, 16)
  head.writeBigUInt64BE(BigInt(now), 20)
  const { enc, mac } = keysOf(terminal.secret, nonce, 'pickgate/sm/1:request:', path)
  const sealed = Buffer.concat([head, nonce, ctr(enc, body)])
  const tag = hmac(mac, sealed)
  return { envelope: Buffer.concat([sealed, tag]), request: { path, nonce, tag } }
}

// 5. The body of an answer.
function openAnswer(terminal, request, envelope) {
  if (envelope.length < MAGIC.length + NONCE_BYTES + TAG_BYTES || !envelope.subarray(0, 4).equals(MAGIC)) {
    throw new Error('the answer is not sealed')
  }
  const sealed = envelope.subarray(0, envelope.length - TAG_BYTES)
  const tag = envelope.subarray(envelope.length - TAG_BYTES)
  const nonce = sealed.subarray(4, 4 + NONCE_BYTES)
  const salt = Buffer.concat([request.nonce, nonce])
  const { enc, mac } = keysOf(terminal.secret, salt, 'pickgate/sm/1:answer:', request.path)
  if (!crypto.timingSafeEqual(tag, hmac(mac, request.tag, sealed))) {
    throw new Error('the answer does not open: it was changed, or answers another request')
  }
  return ctr(enc, sealed.subarray(4 + NONCE_BYTES))
}

module.exports = { secretOf, sealRequest, openAnswer, ctr, keysOf }
