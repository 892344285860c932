'use strict'
// A terminal in the SM profile. Reads one line of JSON, does what it says, prints one line of JSON.
//
//   {"do": "enrol", "terminal": {"mall_id", "store_id", "terminal_id"}, "invitation"}
//       makes an SM2 key pair, shows the invitation's token, and is given its secret
//   {"do": "visit", "enrolled": what enrol printed, "uid"}
//       renders the code, inspects and redeems it, all sealed; repeats the very envelope, and one to another method; takes its next
//       secret, and asks for the redemption again by it
//   {"do": "vectors", "file"}                            → what it makes of docs/sm-profile.md's vectors
//
// The first two besides: "address", "protos"; for TLS "ca", the file of the server's CA; where callers are known "token", and
// "render_token" for the mall, who renders.

const fs = require('node:fs')
const path = require('node:path')
const { sm2 } = require('sm-crypto')
const { secretOf, sealRequest, openAnswer } = require('./sealing')

async function main() {
  const asked = JSON.parse(fs.readFileSync(0, 'utf8'))
  const deeds = { enrol, visit, vectors }
  process.stdout.write(JSON.stringify(await deeds[asked.do](asked)) + '\n')
}

// A connection, and the methods of the contract by their names.
function connect(asked) {
  const grpc = require('@grpc/grpc-js')
  const loader = require('@grpc/proto-loader')
  const names = ['CodeService', 'RedemptionService', 'TerminalService']
  const files = ['code_service', 'redemption_service', 'terminal_service'].map((name) =>
    path.join(asked.protos, 'pickgate', 'v1', `${name}.proto`)
  )
  const services = loader.loadSync(files, { includeDirs: [asked.protos], enums: String, longs: Number, defaults: true, keepCase: true })
  const methods = Object.assign({}, ...names.map((name) => services[`pickgate.v1.${name}`]))
  const credentials = asked.ca ? grpc.credentials.createSsl(fs.readFileSync(asked.ca)) : grpc.credentials.createInsecure()
  const client = new grpc.Client(asked.address, credentials)
  const send = (path, body, token) =>
    new Promise((resolve, reject) => {
      const metadata = new grpc.Metadata()
      if (token) metadata.set('authorization', `Bearer ${token}`)
      const deadline = { deadline: Date.now() + 20_000 }
      client.makeUnaryRequest(path, (x) => x, (x) => x, body, metadata, deadline, (error, answer) =>
        error ? reject(new Error(`${grpc.status[error.code]}: ${error.details}`)) : resolve(answer)
      )
    })
  return { methods, send, close: () => client.close() }
}

// The one call that is not sealed: there is no secret yet. Its token is for this once, and goes over TLS.
async function enrol(asked) {
  const pair = sm2.generateKeyPairHex()
  const { methods, send, close } = connect(asked)
  try {
    const method = methods.EnrolTerminal
    const request = { terminal: asked.terminal, token: asked.invitation, sm_public_key: Buffer.from(pair.publicKey, 'hex') }
    const answer = method.responseDeserialize(await send(method.path, method.requestSerialize(request)))
    return {
      ...asked.terminal,
      number: answer.sm_number,
      sealed_secret: answer.sm_sealed_secret.toString('hex'),
      public_key: pair.publicKey,
      private_key: pair.privateKey,
    }
  } finally {
    close()
  }
}

async function visit(asked) {
  const { methods, send, close } = connect(asked)
  const enrolled = asked.enrolled
  const terminal = {
    mallId: enrolled.mall_id,
    storeId: enrolled.store_id,
    terminalId: enrolled.terminal_id,
    number: enrolled.number,
    secret: secretOf(enrolled.sealed_secret, enrolled.private_key),
  }
  const at = { mall_id: terminal.mallId, store_id: terminal.storeId, terminal_id: terminal.terminalId }
  const call = async (name, message, token = asked.token) => {
    const method = methods[name]
    const { envelope, request } = sealRequest(terminal, method.path, method.requestSerialize(message))
    const answer = await send(method.path, envelope, token)
    return { answer: method.responseDeserialize(openAnswer(terminal, request, answer)), envelope, raw: answer, path: method.path }
  }
  const refusal = async (path, envelope) => {
    try {
      await send(path, envelope, asked.token)
      return 'answered'
    } catch (error) {
      return error.message
    }
  }
  try {
    const rendered = await call('Render', { mall_id: terminal.mallId, uid: asked.uid, count: 1 }, asked.render_token)
    const code = rendered.answer.payloads[0].text
    const inspected = await call('Inspect', { terminal: at, code })
    const redemption = { terminal: at, code, request_id: `node-${asked.uid}` }
    const redeemed = await call('Redeem', redemption)
    const replayed = await refusal(redeemed.path, redeemed.envelope)
    const elsewhere = await refusal(inspected.path, redeemed.envelope)
    const key = Buffer.from(enrolled.public_key, 'hex')
    const rotated = await call('RotateSecret', { terminal: at, request_id: `next-${asked.uid}`, sm_public_key: key })
    terminal.number = rotated.answer.sm_number
    terminal.secret = secretOf(rotated.answer.sm_sealed_secret.toString('hex'), enrolled.private_key)
    const again = await call('Redeem', redemption)
    return {
      code,
      inspected: inspected.answer.verdict,
      redeemed: redeemed.answer.verdict,
      message_zh: redeemed.answer.message_zh,
      clear: [rendered, inspected, redeemed].some((one) => one.envelope.includes(code) || one.raw.includes(asked.uid)),
      replayed,
      elsewhere,
      number: terminal.number,
      again: again.answer.verdict,
    }
  } finally {
    close()
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
      secret: secretOf(vector.sealed_secret, vector.private_key).toString('hex'),
    }
  })
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`)
  process.exit(1)
})
