# A bucket for restricted data: closed to the public, encrypted, owned by one account, and tidy.
#
#   terraform init && terraform apply -var bucket=my-lab-mimic
#
# The policies of deploy/iam/ then give a role the least that the mirror needs.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40"
    }
  }
}

variable "bucket" {
  description = "Name of the bucket."
  type        = string
}

resource "aws_s3_bucket" "mirror" {
  bucket = var.bucket
}

# Neither a policy nor an ACL can open it, whoever writes one.
resource "aws_s3_bucket_public_access_block" "mirror" {
  bucket                  = aws_s3_bucket.mirror.id
  block_public_acls       = true
  ignore_public_acls      = true
  block_public_policy     = true
  restrict_public_buckets = true
}

# No ACLs at all: every object belongs to the bucket's owner.
resource "aws_s3_bucket_ownership_controls" "mirror" {
  bucket = aws_s3_bucket.mirror.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_kms_key" "mirror" {
  description             = "Encrypts ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

# The bucket key keeps 377,110 objects from asking KMS 377,110 times.
resource "aws_s3_bucket_server_side_encryption_configuration" "mirror" {
  bucket = aws_s3_bucket.mirror.id
  rule {
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.mirror.arn
    }
  }
}

# A deleted or overwritten object can be brought back for 30 days.
resource "aws_s3_bucket_versioning" "mirror" {
  bucket = aws_s3_bucket.mirror.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "mirror" {
  bucket     = aws_s3_bucket.mirror.id
  depends_on = [aws_s3_bucket_versioning.mirror]

  # What an interrupted upload left behind is invisible, and paid for.
  rule {
    id     = "abort-incomplete-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

  rule {
    id     = "forget-old-versions"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = 30
    }
    expiration {
      expired_object_delete_marker = true
    }
  }
}

# TLS only. Allowing nobody anything, this policy is not public.
data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "DenyPlainHttp"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.mirror.arn, "${aws_s3_bucket.mirror.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "mirror" {
  bucket     = aws_s3_bucket.mirror.id
  policy     = data.aws_iam_policy_document.tls_only.json
  depends_on = [aws_s3_bucket_public_access_block.mirror]
}

output "bucket" {
  value = aws_s3_bucket.mirror.bucket
}

output "kms_key_arn" {
  value = aws_kms_key.mirror.arn
}
