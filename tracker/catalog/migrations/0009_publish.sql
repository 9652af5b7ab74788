-- serves: 3
--
-- What is published to IPFS: which repositories are, what of them, and how far that has come at each service.

-- Globs over the names of repositories that are published.
create table ipfs_patterns (
    pattern text collate "C" primary key,
    created_at timestamptz not null default now(),
    actor text not null default ''
);

-- Repositories in which something has changed that may matter. One row for each change, so that a change which is being
-- committed is never taken for one that was looked at. Without references: a repository that is gone is looked at too.
create table ipfs_changed (
    id bigint generated always as identity primary key,
    repository_id bigint not null
);

-- What repositories want to be published, by the root of its DAG: blobs, manifests and claims.
create table ipfs_wanted (
    repository_id bigint not null,
    cid bytea not null check (octet_length(cid) = 36),
    kind text not null check (kind in ('blob', 'manifest', 'claim')),
    -- Of the blob, or of the manifest, also for its claim.
    digest digest not null,
    size bigint not null,
    primary key (repository_id, cid)
);
create index ipfs_wanted_cid on ipfs_wanted (cid);

create table ipfs_jobs (
    id bigint generated always as identity primary key,
    cid bytea not null check (octet_length(cid) = 36),
    service text not null,
    kind text not null,
    digest digest not null,
    size bigint not null,
    state text not null default 'queued'
        check (state in ('queued', 'publishing', 'published', 'failed', 'unpinning', 'removed')),
    -- Bytes of the CAR that have gone to the service.
    sent bigint not null default 0,
    attempts integer not null default 0,
    -- Null: never by itself.
    next_at timestamptz default now(),
    -- The tracker that works on it has it until then; each one that takes it counts up generation.
    held_until timestamptz,
    generation bigint not null default 0,
    -- What the service calls it.
    remote text,
    last_error text,
    updated_at timestamptz not null default now(),
    unique (cid, service)
);
create index ipfs_jobs_due on ipfs_jobs (service, next_at, id) where next_at is not null;
create index ipfs_jobs_state on ipfs_jobs (service, state);

-- In the transaction of the change itself; no content is noted while nothing is published.
create function note_ipfs(of_repository bigint) returns void language plpgsql as $$
begin
    if exists (select from ipfs_patterns) or exists (select from ipfs_wanted where repository_id = of_repository) then
        insert into ipfs_changed (repository_id) values (of_repository);
    end if;
end
$$;

-- Always: somebody may be choosing the repository at this moment, and what becomes private must not be missed.
create function note_ipfs_repository() returns trigger language plpgsql as $$
begin
    insert into ipfs_changed (repository_id) values (old.id);
    return null;
end
$$;
create trigger note_ipfs_changed after update on repositories for each row
    when (old.private is distinct from new.private or old.name is distinct from new.name)
    execute function note_ipfs_repository();
create trigger note_ipfs_gone after delete on repositories for each row execute function note_ipfs_repository();

create function note_ipfs_content() returns trigger language plpgsql as $$
begin
    perform note_ipfs(case tg_op when 'DELETE' then old.repository_id else new.repository_id end);
    return null;
end
$$;
create trigger note_ipfs_pushed after insert or update of claim on repository_manifests for each row
    execute function note_ipfs_content();
create trigger note_ipfs_deleted after delete on repository_manifests for each row execute function note_ipfs_content();
-- By the garbage collector; the transaction that condemns the bytes comes after it.
create trigger note_ipfs_unlinked after delete on repository_blobs for each row execute function note_ipfs_content();
