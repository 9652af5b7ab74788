-- serves: 3
--
-- Who is who and who may do what; keys; nodes; and one row for each thing that can change, numbered in the order of
-- commits. Programs of schema 3 to 5 change tags as before: the numbers come from triggers.

-- ----------------------------------------------------------------------------------------------------------- changes

-- The last number given. A database restored from a backup begins a higher epoch: "p2pregistry tracker new-epoch".
create table change_state (
    only_row boolean primary key default true check (only_row),
    epoch bigint not null,
    number bigint not null
);
insert into change_state (epoch, number) values (1, 0);

-- The latest change of each thing, so that a reader who was away catches up with the state and not with its history.
-- kind: 'tag' (repository, name; digest null: deleted), 'repository' (repository; gone: deleted), 'node' (name: peer id),
-- 'keys', 'access' (name: account).
create table changes (
    number bigint primary key,
    kind text not null,
    repository text collate "C" not null default '',
    name text collate "C" not null default '',
    digest digest,
    gone boolean not null default false,
    at timestamptz not null,
    unique (kind, repository, name)
);

-- Takes the next number, which holds back every other writer until the commit, and notes what changed. Called by
-- deferred triggers, so as the last thing before the commit: numbers follow the order of commits, and what is locked
-- afterwards is locked by this transaction already.
create function note_change(of_kind text, of_repository text, of_name text, to_digest bytea, is_gone boolean)
returns void language plpgsql as $$
declare
    taken bigint;
begin
    update change_state set number = number + 1 returning number into taken;
    insert into changes (number, kind, repository, name, digest, gone, at)
    values (taken, of_kind, of_repository, of_name, to_digest, is_gone, clock_timestamp())
    on conflict (kind, repository, name) do update
    set number = excluded.number, digest = excluded.digest, gone = excluded.gone, at = excluded.at;
    perform pg_notify('p2pregistry_changes', taken::text);
end
$$;

-- What a tag is at the commit, however often it changed in the transaction.
create function note_tag() returns trigger language plpgsql as $$
declare
    of_tag record;
    repository_name text;
    now_digest bytea;
begin
    if tg_op = 'DELETE' then of_tag := old; else of_tag := new; end if;
    select name into repository_name from repositories where id = of_tag.repository_id;
    if repository_name is null then
        return null; -- it went with its repository, which is a change of its own
    end if;
    select m.digest into now_digest from tags t join manifests m on m.id = t.manifest_id
    where t.repository_id = of_tag.repository_id and t.name = of_tag.name;
    perform note_change('tag', repository_name, of_tag.name, now_digest, now_digest is null);
    return null;
end
$$;
create constraint trigger note_tag_added after insert or delete on tags
    deferrable initially deferred for each row execute function note_tag();
create constraint trigger note_tag_moved after update on tags
    deferrable initially deferred for each row
    when (old.manifest_id is distinct from new.manifest_id) execute function note_tag();

-- Private: only who was given rights may pull. What was there before is as public as it was.
alter table repositories add column private boolean not null default false;
alter table repositories alter column private set default true;
create index repositories_public on repositories (name) where not private;

create function note_repository() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        perform note_change('repository', new.name, '', null, false);
        return null;
    end if;
    if tg_op = 'DELETE' or old.name <> new.name then
        perform note_change('repository', old.name, '', null, true);
    end if;
    if tg_op = 'UPDATE' then
        perform note_change('repository', new.name, '', null, false);
    end if;
    return null;
end
$$;
create constraint trigger note_repository_added after insert or delete on repositories
    deferrable initially deferred for each row execute function note_repository();
create constraint trigger note_repository_changed after update on repositories
    deferrable initially deferred for each row
    when (old.private is distinct from new.private or old.name is distinct from new.name)
    execute function note_repository();

insert into changes (number, kind, repository, at)
select row_number() over (order by id), 'repository', name, now() from repositories;
insert into changes (number, kind, repository, name, digest, at)
select (select count(*) from repositories) + row_number() over (order by t.updated_at, r.name, t.name),
    'tag', r.name, t.name, m.digest, t.updated_at
from tags t join repositories r on r.id = t.repository_id join manifests m on m.id = t.manifest_id;
update change_state set number = (select coalesce(max(number), 0) from changes);

-- -------------------------------------------------------------------------------------------------------- identities

-- Users and organisations share one space of names, because a name is also a namespace: the first part of a repository.
create table accounts (
    id bigint generated always as identity primary key,
    kind text not null check (kind in ('user', 'organization')),
    name text collate "C" not null unique,
    -- argon2id; null: no password is good.
    password text,
    administrator boolean not null default false,
    disabled_at timestamptz,
    created_at timestamptz not null default now()
);
-- Names that were in use: nobody else gets them, because somebody may still pull from there.
create table former_names (
    name text collate "C" primary key,
    account_id bigint,
    until timestamptz not null default now()
);
create table members (
    organization_id bigint not null references accounts on delete cascade,
    user_id bigint not null references accounts on delete cascade,
    role text not null check (role in ('owner', 'admin', 'member')),
    created_at timestamptz not null default now(),
    primary key (organization_id, user_id)
);
create index members_user on members (user_id);
create table teams (
    id bigint generated always as identity primary key,
    organization_id bigint not null references accounts on delete cascade,
    name text collate "C" not null,
    created_at timestamptz not null default now(),
    unique (organization_id, name)
);
create table team_members (
    team_id bigint not null references teams on delete cascade,
    user_id bigint not null references accounts on delete cascade,
    primary key (team_id, user_id)
);
create index team_members_user on team_members (user_id);
create table team_grants (
    team_id bigint not null references teams on delete cascade,
    -- A glob over repositories of the organisation, its name included.
    pattern text collate "C" not null,
    actions text[] not null,
    primary key (team_id, pattern)
);
-- Personal and robot tokens and refresh tokens: secrets of 256 random bits, so a plain hash of them tells nothing.
create table tokens (
    id bigint generated always as identity primary key,
    kind text not null check (kind in ('personal', 'robot', 'refresh')),
    -- The user, or for a robot the user or organisation it works for.
    account_id bigint not null references accounts on delete cascade,
    name text not null,
    hash bytea not null unique,
    -- Its last characters, to tell it from others.
    hint text not null,
    -- "repository:acme/**:pull,push"; null: all that the account may (never for a robot).
    scopes text[],
    created_at timestamptz not null default now(),
    created_by text not null default '',
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    -- Of a refresh token: the personal or robot token it was asked for with, which it ends with.
    parent_id bigint references tokens on delete cascade
);
create index tokens_account on tokens (account_id);
create index tokens_parent on tokens (parent_id) where parent_id is not null;
-- The one-time secret with which the first administrator is made.
create table setup (
    hash bytea primary key,
    expires_at timestamptz not null
);
alter table audit add column account_id bigint;

-- -------------------------------------------------------------------------------------------------------------- keys

-- Every key that ever was, so that what one has signed can be told from a forgery for ever.
create table signing_keys (
    kid text collate "C" primary key,
    public text not null,
    -- Wrapped with the key that the trackers have in a file (PASERK k4.secret-wrap.pie).
    secret text not null,
    created_at timestamptz not null default now(),
    -- It signs from here on, when every node has had the time to hear of it, until the next one does. Null: no key set
    -- names it yet, the root has still to sign one.
    sign_from timestamptz,
    -- No key set names it any more.
    dropped_at timestamptz
);
create table key_sets (
    version bigint primary key,
    token text not null,
    created_at timestamptz not null default now()
);
-- What all trackers of a database share and nobody else knows, wrapped likewise.
create table tracker_secrets (
    name text primary key,
    wrapped text not null
);
-- Which key signed the claim, as its footer says (a PASETO: version, purpose, payload and signature, footer). Null: not
-- known. Whatever is not of the key that signs now is signed again in the background.
alter table repository_manifests add column claim_kid text collate "C";
create index repository_manifests_kid on repository_manifests (claim_kid);

-- In the database, because programs of schema 3 to 5 write claims too.
create function note_claim_kid() returns trigger language plpgsql as $$
declare
    footer text := split_part(new.claim, '.', 4);
begin
    new.claim_kid := null;
    if footer ~ '^[A-Za-z0-9_-]+$' and length(footer) % 4 <> 1 then
        footer := rpad(translate(footer, '-_', '+/'), (length(footer) + 3) / 4 * 4, '=');
        new.claim_kid := substring(encode(decode(footer, 'base64'), 'escape') from '"kid": *"(k4\.pid\.[A-Za-z0-9_-]+)"');
    end if;
    return new;
end
$$;
create trigger note_claim_kid before insert or update of claim on repository_manifests
    for each row execute function note_claim_kid();

-- ------------------------------------------------------------------------------------------------------------- nodes

create table join_tokens (
    id bigint generated always as identity primary key,
    hash bytea not null unique,
    swarm text not null,
    pulls text[] not null default '{}',
    labels jsonb not null default '{}',
    -- Null: any number of nodes.
    uses_left integer check (uses_left >= 0),
    created_at timestamptz not null default now(),
    created_by text not null default '',
    expires_at timestamptz not null,
    revoked_at timestamptz
);
-- A node that was revoked stays here, so that its peer id cannot come back. That is a change of kind 'node', written
-- by the program with note_change; the list of revocations has the number of the latest one.
create table nodes (
    peer_id text collate "C" primary key,
    swarm text not null,
    pulls text[] not null,
    labels jsonb not null,
    -- "join token 7", or the subject of the identity token it came with.
    joined_by text not null,
    -- The join token, so that a node which lost the answer is given another one for the same use.
    token_id bigint references join_tokens on delete set null,
    enrolled_at timestamptz not null default now(),
    renewed_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz
);
create index nodes_revoked on nodes (revoked_at) where revoked_at is not null;
create index nodes_token on nodes (token_id);

-- Nonces that were used, until they would not be accepted anyway.
create unlogged table used_nonces (
    nonce text collate "C" primary key,
    until timestamptz not null
);
