-- Makes fold_case(text): equal for texts that differ only in letter case, or in composed and decomposed letters.
-- docs/decisions/case-folding.md has the reasons. Migration 0005 runs this; `flask db upgrade` runs it again where the
-- function names a collation that the server does not have. It can be run any number of times.
DO $do$
DECLARE
    best text;
BEGIN
    -- Collations that know all letters, the best first: built in from PostgreSQL 18 on, ICU's where the server was built
    -- with ICU, built in from PostgreSQL 17 on.
    SELECT quote_ident(collname) INTO best
    FROM pg_collation
    WHERE collnamespace = 'pg_catalog'::regnamespace AND collname IN ('pg_unicode_fast', 'und-x-icu', 'pg_c_utf8')
    ORDER BY array_position(ARRAY['pg_unicode_fast', 'und-x-icu', 'pg_c_utf8'], collname::text)
    LIMIT 1;
    IF best IS NULL THEN
        RAISE EXCEPTION 'The server knows no letters but ASCII: use one that is built with ICU, or PostgreSQL 17 or later'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    -- Not STRICT, and one expression: so PostgreSQL puts it into each query in place of a call. The first two branches
    -- give what the third gives, at a tenth of its cost. The second is for letters that no neighbour can change: none of
    -- them combines, and the upper case of each is composed. "C" at each end: two collations do not mix in one CASE.
    EXECUTE replace(
        $create$
        CREATE OR REPLACE FUNCTION fold_case(text) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        AS $fold$
            SELECT CASE
                WHEN octet_length($1) = length($1) THEN upper($1 COLLATE "C") COLLATE "C"
                WHEN $1 COLLATE "C" !~ ('[^'
                    '\u0001-\u012f\u0131-\u0148\u014a-\u01ef\u01f1-\u02ff'  -- Latin
                    '\u0386\u0388-\u038a\u038c\u038e\u038f\u0391-\u03a1\u03a3-\u03af\u03b1-\u03ff'  -- Greek
                    '\u0400-\u0482\u048a-\u052f\u0531-\u0556\u0561-\u0586'  -- Cyrillic, Armenian
                    '\u05be\u05d0-\u05ea\u0621-\u064a\u0660-\u066d'  -- Hebrew, Arabic
                    '\u1e00-\u1e95\u1e9e-\u1eff'  -- Latin, of Vietnamese for instance
                    '\u2010-\u205e\u20a0-\u20bf\u2190-\u2328\u2500-\u27bf'  -- Punctuation, currencies, symbols
                    '\u3000-\u3029\u3041-\u3096\u309b-\u30ff\u4e00-\u9fff\uac00-\ud7a3'  -- Japanese, Chinese, Korean
                    '\ufe0f\uff01-\uff60\U0001f300-\U0001f64f'  -- Full width, emoji
                    ']') THEN upper(lower($1 COLLATE best)) COLLATE "C"
                ELSE normalize(upper(lower(normalize($1, NFD) COLLATE best)), NFC) COLLATE "C"
            END
        $fold$
        $create$,
        'COLLATE best', 'COLLATE ' || best
    );
END
$do$
