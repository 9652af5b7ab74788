-- serves: 3
--
-- Which blob a block of an IPFS DAG is of, for the gateway. Blobs of one piece need nothing: their digest is the hash of
-- their only block.

-- For each block of a blob of several pieces (of one whose digest is not sha256, of any size) the first 64 bits of its
-- hash: the pieces in order, then the inner nodes as content/unixfs.build has them. Who finds a blob compares the rest.
create table blob_blocks (
    blob_id bigint primary key references blobs on delete cascade,
    keys bigint[] not null
);
-- New keys wait in a short list, so that a push does not pay for a thousand places in the index.
create index blob_blocks_keys on blob_blocks using gin (keys) with (gin_pending_list_limit = 512);

-- Blobs that an older program has stored have no keys: the trackers add them.
alter table blobs add column keyed boolean not null default false;
create index blobs_unkeyed on blobs (id) where not keyed and (size > 1048576 or get_byte(digest, 0) <> 18);
-- By the root they are found without keys.
create index blobs_root on blobs using hash (root);

-- Claims are blocks too. After the tables above: pushes take their locks in this order, and whoever takes them the other
-- way round ends in a deadlock with one.
create index repository_manifests_claim on repository_manifests using hash (sha256(claim::bytea));

-- -------------------------------------------------------------------------------------------------------- announces

-- The base URL of a node's own gateway; empty: it has none.
alter table announces add column gateway text not null default '';
