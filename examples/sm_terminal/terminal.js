'use strict'
// A terminal in the SM profile. Reads one line of JSON, does what it says, prints one line of JSON.
//
//   {"do": "keys"}                                       → {"public_key", "private_key"}
//   {"do": "visit", "address", "protos", "private_key", "enrolment", "uid"}
//       renders the code, inspects and redeems it, all sealed; then repeats the very envelope, and one to another method
//   {"do": "vectors", "file"}                            → what it makes of docs/sm-profile.md's vectors

const fs = require('node:fs')
const path = require('node:path')
const { sm2 } = require('sm-crypto')
const { secretOf, sealRequest, openAnswer } = require('./sealing')

async function main() {
  const asked = JSON.parse(fs.readFileSync(0, 'utf8'))
  const deeds = { keys, visit, vectors }
  process.stdout.write(JSON.stringify(await deeds[asked.do](asked)) + '\n')
}

function keys() {
  const pair = sm2.generateKeyPairHex()
  return { public_key: pair.publicKey, private_key: pair.privateKey }
}

async function visit(asked) {
  const grpc = require('@grpc/grpc-js')
  const loader = require('@grpc/proto-loader')
  const files = ['code_service', 'redemption_service'].map((name) =>
    path.join(asked.protos, 'pickgate', 'v1', `${name}.proto`)
  )
  const services = loader.loadSync(files, { includeDirs: [asked.protos], enums: String, longs: Number, defaults: true, keepCase: true })
  const methods = { ...services['pickgate.v1.CodeService'], ...services['pickgate.v1.RedemptionService'] }
  const client = new grpc.Client(asked.address, grpc.credentials.createInsecure())
  const enrolled = asked.enrolment
  const terminal = {
    mallId: enrolled.mall_id,
    storeId: enrolled.store_id,
    terminalId: enrolled.terminal_id,
    number: enrolled.number,
    secret: secretOf(enrolled, asked.private_key),
  }
  const at = { mall_id: terminal.mallId, store_id: terminal.storeId, terminal_id: terminal.terminalId }
  const sent = (path, envelope) =>
    new Promise((resolve, reject) => {
      const deadline = { deadline: Date.now() + 20_000 }
      client.makeUnaryRequest(path, (x) => x, (x) => x, envelope, new grpc.Metadata(), deadline, (error, answer) =>
        error ? reject(error) : resolve(answer)
      )
    })
  const call = async (name, message) => {
    const method = methods[name]
    const { envelope, request } = sealRequest(terminal, method.path, method.requestSerialize(message))
    const answer = await sent(method.path, envelope)
    return { answer: method.responseDeserialize(openAnswer(terminal, request, answer)), envelope, raw: answer, path: method.path }
  }
  const refusal = async (path, envelope) => {
    try {
      await sent(path, envelope)
      return 'answered'
    } catch (error) {
      return `${grpc.status[error.code]}: ${error.details}`
    }
  }
  try {
    const rendered = await call('Render', { mall_id: terminal.mallId, uid: asked.uid, count: 1 })
    const code = rendered.answer.payloads[0].text
    const inspected = await call('Inspect', { terminal: at, code })
    const redeemed = await call('Redeem', { terminal: at, code, request_id: `node-${asked.uid}` })
    return {
      code,
      inspected: inspected.answer.verdict,
      redeemed: redeemed.answer.verdict,
      message_zh: redeemed.answer.message_zh,
      clear: [rendered, inspected, redeemed].some((one) => one.envelope.includes(code) || one.raw.includes(asked.uid)),
      replayed: await refusal(redeemed.path, redeemed.envelope),
      elsewhere: await refusal(inspected.path, redeemed.envelope),
    }
  } finally {
    client.close()
  }
}

function vectors(asked) {
  return JSON.parse(fs.readFileSync(asked.file, 'utf8')).map((vector) => {
    const terminal = {
      mallId: vector.mall_id,
      storeId: vector.store_id,
      terminalId: vector.terminal_id,
      number: vector.number,
      secret: Buffer.from(vector.secret, 'hex'),
    }
    const body = Buffer.from(vector.body, 'hex')
    const nonce = Buffer.from(vector.nonce, 'hex')
    const made = sealRequest(terminal, vector.path, body, vector.time_ms, nonce)
    const answer = openAnswer(terminal, made.request, Buffer.from(vector.answer_envelope, 'hex'))
    return {
      request_envelope: made.envelope.toString('hex'),
      answer_body: answer.toString('hex'),
      secret: secretOf({ sealed_secret: vector.sealed_secret }, vector.private_key).toString('hex'),
    }
  })
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`)
  process.exit(1)
})
