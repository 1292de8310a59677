// Package blueprint has Kanister's blueprints: their types, their parser, the
// recipes that are built in, and the search for the blueprint that an annotation
// names.
//
// It does not look into templates, which package render evaluates, and knows no
// Kanister function, which package function has. Package quiesce looks blueprints up.
package blueprint
