"""The service that most would write, to measure pickgate against: grpc.aio, uvloop, redis.asyncio, one script call per request.

It speaks the same contract as far as load needs it, opens the same payloads (docs/format.md, version 2, AES suite) with the
`cryptography` package, applies the same rules in the same order and keeps as much: a record, stock, a remembered answer, one
event per change, refused attempts, an index of expiries; on the same kind of store with the same durability. It is written with
care and then left alone: a comparison that is tuned down proves nothing, one that is tuned up for ever is another product.

What it leaves out, all of it in its own favour: other versions and suites, bundles, tiers, windows and hours, holds, voids,
reversals and reviews, other datums than its stores', several keys, partitions, comparing clocks, gapless event numbers.

It imports nothing of `engine`, and is the one place outside `engine.state` that may import `redis`: what it is compared with is
just that client, called just so.
"""
